"""What measurements have in common: a process of its own, whose death is a result as well, and in
it an engine on the clock.

    result = in_child("gpt.training.throughput", task, memory_limit)      in the command
    answer(measure)                                                       in its child
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gpt.config.resolve import resolve
from gpt.config.run_config import Config
from gpt.errors import RunError, UserError, in_words

if TYPE_CHECKING:  # which imports torch
    from gpt.cluster.world import World

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "MemoryError")
OUT_OF_MEMORY = "out of memory"
MOST_OVERFLOWS = 100  # steps that fp16 may leave out
FREE_SHARE = 0.95  # of the free host memory that a measurement may take
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def in_child(module: str, task: dict[str, Any], memory_limit: float | None = None) -> dict:
    """What `answer` gives in a process of its own, {"status": "ok", …}; else its status alone tells
    why there is nothing.

    module: what the process runs. memory_limit: bytes of host memory that it may take; None: most
    of what is free.
    """
    limit = memory_limit or FREE_SHARE * psutil.virtual_memory().available
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as child:
        text: str | None = json.dumps(task)
        output = None
        while output is None:
            try:
                output, errors = child.communicate(text, timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                text = None
                # before the system looks for something to kill
                if _resident(child.pid) > limit:
                    child.kill()
    if child.returncode == 0:
        return json.loads(output.splitlines()[-1])
    if child.returncode == -signal.SIGKILL or any(words in errors for words in NO_MEMORY):
        return {"status": OUT_OF_MEMORY}
    lines = [line for line in errors.splitlines() if line.strip()]
    return {"status": f"failed: {lines[-1] if lines else f'exit code {child.returncode}'}"}


def child_environment() -> dict[str, str]:
    """A child is no rank of whatever launcher this was started under, and imports this project,
    whatever the folder is that it is started in."""
    environment = {
        name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES
    }
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _resident(pid: int) -> int:
    """Bytes of host memory that a process occupies."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


# ---- The child


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a task from stdin; write what is measured of it as the last line of stdout. A mistake
    that only the device tells is a result, too."""
    task = json.loads(sys.stdin.read())
    try:
        result = measure(task)
    except Exception as caught:
        error = in_words(caught)
        if not isinstance(error, (UserError, RunError)):
            raise
        result = {"status": f"failed: {error}"}
    print("\n" + json.dumps(result))


def config_here(tree: dict[str, Any], name: str) -> Config:
    """The configuration as this machine trains it: in fp32 where it has no fp16."""
    from gpt.engine import boundary

    config = resolve(tree, name)
    if config.precision == "fp16" and not boundary.has_fp16():
        return config.without_fp16("no GPU that computes in fp16")
    return config


class TimedEngine:
    """The engine that train.py trains with, on one device, and random tokens for its steps: the
    same in each of them."""

    def __init__(self, config: Config, world: "World"):
        import torch

        from gpt.architecture.architecture import build
        from gpt.compute import hardware
        from gpt.engine import boundary
        from gpt.kernels.choice import choose

        options = config.options
        dtype = hardware.DTYPES[config.precision]
        self.kernels, _ = choose(options.kernels, world.device, config.model, dtype)
        model = build(config, self.kernels)
        weights = model.initial_weights(options.seed)
        self._engine = boundary.Engine(model, config, world, weights)
        batch = config.batch
        size = (batch.accumulation, batch.micro_size, config.model.seq_len + 1)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(config.model.vocab_size, size, generator=generator)
        self._tokens = drawn.numpy()
        self._overflows = 0

    def step(self) -> float:
        """Seconds of one whole optimiser step, until its loss is known. Raises RunError where the
        gradient overflows in all of them."""
        while True:
            began = time.perf_counter()
            result = self._engine.step(self._tokens)
            result.loss.item()  # as in training, where the ranks agree on it after every step
            if result.applied:
                return time.perf_counter() - began
            self._overflows += 1  # of fp16, which is no whole step
            if self._overflows > MOST_OVERFLOWS:
                raise RunError("the gradient overflows again and again")
