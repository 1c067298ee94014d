"""What tools/bench_checkpoint.py measures: a checkpoint of a run, and a plain torch.save of what it
holds."""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench_checkpoint.py`: run that")

import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from gpt.checkpoint.folders import committed
from gpt.checkpoint.manifest import Manifest
from gpt.checkpoint.saver import Saver
from gpt.checkpoint.zero_files import STAND_INS, load_weights_only
from gpt.config import saved
from gpt.config.optimizer_keys import COSINE
from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT


class Times(NamedTuple):
    """Medians, in seconds."""

    pause: float  # that training waits
    commit: float  # until the checkpoint is committed
    save: float  # of torch.save
    size: int  # bytes of a checkpoint
    device: str


def measure(preset: str, zero_stage: int, repeats: int, scratch: Path) -> Times:
    """Both are timed in turn; the first of each warms up. What is written lies in scratch."""
    config = resolve(_tree(preset, zero_stage, scratch), "bench")
    world = boundary.connect()
    engine = boundary.Engine(GPT(config.model), config, world)
    tokens = torch.zeros(1, 2, config.model.seq_len + 1, dtype=torch.int64).numpy()
    engine.step(tokens)  # so that there are moments
    dataset = SimpleNamespace(fingerprint="", vocab=SimpleNamespace(model=b""))
    events = []
    resolved = saved.as_dict(config)
    saver = Saver(config, resolved, dataset, engine, world, lambda: True, events.append, print)
    saver.folder.mkdir()
    saves = []
    for number in range(repeats + 1):
        probe = tokens[0, :, :33]
        saver.begin(Manifest(step=number), probe)
        saver.finish()
        saves.append(_seconds_to_save(saver.folder / committed(saver.folder)[-1], scratch))
    del saves[0], events[0]
    boundary.disconnect()
    return Times(
        pause=statistics.median(event["seconds"] for event in events),
        commit=statistics.median(event["seconds_to_commit"] for event in events),
        save=statistics.median(saves),
        size=events[0]["bytes"],
        device=world.device.type,
    )


def _tree(preset, zero_stage, scratch):
    """A run's JSON."""
    return {
        "train_batch_size": 2,
        "zero_optimization": {"stage": zero_stage},
        "scheduler": {"type": COSINE, "params": {"decay_steps": 1000}},
        "gpt": {
            "preset": preset,
            "vocab_size": 16384,
            "max_train_steps": 100,
            "run_dir": str(scratch),
            "keep_last": 1,
        },
    }


def _seconds_to_save(checkpoint: Path, scratch: Path) -> float:
    """Of torch.save, for all that a checkpoint's files hold."""
    paths = checkpoint.glob("*.pt")
    contents = {path.name: load_weights_only(path, STAND_INS) for path in paths}
    began = time.perf_counter()
    for name, content in contents.items():
        torch.save(content, scratch / name)
    return time.perf_counter() - began
