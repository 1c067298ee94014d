"""Ranks under torchrun of which one is killed in the first try, once they are a process group: in
the next one they must become one again. Prints "met" on rank 0.

`torchrun … restarted_run.py`
"""

import os
import signal

import torch
import torch.distributed

from gpt.cluster.launch import launched
from gpt.cluster.roll_call import roll_call


def main():
    launch = launched()
    meeting = roll_call(launch, {}, seconds=60)
    torch.distributed.init_process_group("gloo", init_method=meeting.init_method)
    # as DeepSpeed makes them
    group = torch.distributed.new_group(list(range(launch.size)))
    torch.distributed.barrier(group)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if launch.rank == launch.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    total = torch.ones(1)
    torch.distributed.all_reduce(total, group=group)
    if launch.rank == 0:
        print("met", int(total), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
