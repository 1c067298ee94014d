"""How long training waits for a checkpoint, beside a plain torch.save of the same content.

    python tools/bench_checkpoint.py --preset mini [--zero_stage 1] [--folder /a/disk]

Both are timed in turn, several times, in one process; the ratio of their medians is what counts.
What a run waits for is `pause`; hashing, and writing through to the disk, then go on beside the
training until the checkpoint is committed.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, run


def main():
    parser = Parser(__doc__)
    parser.add_argument("--preset", default="mini", help="model shape (default mini)")
    parser.add_argument("--zero_stage", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument(
        "--folder",
        default=".",
        help="where to write; a folder in it is made, and removed (default .)",
    )
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if not Path(args.folder).is_dir() or args.repeats < 1:
        raise UserError("--folder must be a folder that exists, --repeats at least 1")
    scratch = Path(tempfile.mkdtemp(prefix=".bench", dir=args.folder))
    try:
        measure(args, scratch)
    finally:
        shutil.rmtree(scratch)


def measure(args, scratch):
    import torch

    from gpt.checkpoint.folders import committed
    from gpt.checkpoint.saver import Saver
    from gpt.checkpoint.zero_files import STAND_INS, load_weights_only
    from gpt.config.resolve import resolve
    from gpt.engine import boundary
    from gpt.model import GPT

    tree = {
        "train_batch_size": 2,
        "zero_optimization": {"stage": args.zero_stage},
        "scheduler": {"type": "LanguiniCosineLR", "params": {"decay_steps": 1000}},
        "gpt": {
            "preset": args.preset,
            "max_train_steps": 100,
            "run_dir": str(scratch),
            "keep_last": 1,
        },
    }
    config = resolve(tree, "bench")
    world = boundary.connect()
    made = boundary.Engine(GPT(config.model), config, world)
    tokens = torch.zeros(1, 2, config.model.seq_len + 1, dtype=torch.int64).numpy()
    made.step(tokens)  # so that there are moments
    dataset = SimpleNamespace(fingerprint="", vocab=SimpleNamespace(model=b""))
    events = []
    saver = Saver(config, config.as_dict(), dataset, made, world, events.append, print)
    saver.folder.mkdir()
    plain = []
    for number in range(args.repeats + 1):
        saver.begin(number, tokens[0, :, :33], {})
        saver.finish()
        source = saver.folder / committed(saver.folder)[-1]
        contents = {path.name: load_weights_only(path, STAND_INS) for path in source.glob("*.pt")}
        began = time.perf_counter()
        for name, content in contents.items():
            torch.save(content, scratch / name)
        plain.append(time.perf_counter() - began)
    del plain[0], events[0]  # the first of each warms up
    pause, whole, save = (
        statistics.median(times)
        for times in (
            [event["seconds"] for event in events],
            [event["seconds_to_commit"] for event in events],
            plain,
        )
    )
    print(
        f"{args.preset}, ZeRO stage {args.zero_stage}, {events[0]['bytes'] / 1e6:,.0f} MB on"
        f" {world.device.type}, medians of {args.repeats}: torch.save {save:.3f} s; pause"
        f" {pause:.3f} s ({pause / save:.2f} times as long); committed after {whole:.3f} s"
    )
    boundary.disconnect()


if __name__ == "__main__":
    run(main)
