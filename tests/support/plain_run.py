"""Whole runs in the test's own process: everything but DeepSpeed, in whose place there is plain
torch. One rank, on the CPU."""

from contextlib import nullcontext

import torch
from conftest import write_run

from gpt.architecture.architecture import set_parameter
from gpt.cluster.world import World
from gpt.config.resolve import load
from gpt.data.datasets import Dataset
from gpt.engine.step import StepResult
from gpt.training.trainer import Trainer

WEIGHTS = "mp_rank_00_model_states.pt"
KERNELS = "torch", "a test"


class PlainEngine:
    """What a run needs of gpt.engine.boundary.Engine: steps of plain SGD at the schedule's learning
    rate."""

    loss_scale = 1.0
    notices = ()

    def __init__(self, model, config, world, weights):
        self.world = world
        self.module = model
        for name, values in weights:
            set_parameter(model, name, torch.nn.Parameter(values))
        self._schedule = config.schedule
        self._steps = 0

    @property
    def lr(self):
        return self._schedule.lr(self._steps + 1)

    def step(self, batch, want_norms=False, accept=None, mark=lambda part: None, watch=None):
        tokens = torch.from_numpy(batch).flatten(0, 1)
        with watch or nullcontext():
            loss = self.module(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        squares = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.module.parameters():
                squares += parameter.grad.double().square().sum()
                parameter -= self.lr * parameter.grad
                parameter.grad = None
        self._steps += 1
        mark("step")
        return StepResult(True, False, False, loss.detach().double(), squares.sqrt(), None)

    def probe(self, tokens):
        rows = torch.from_numpy(tokens)
        with torch.no_grad():
            return self.module(rows[:, :-1], rows[:, 1:]).item()

    def first_nonfinite_state(self):
        for name, parameter in self.module.named_parameters():
            if not parameter.isfinite().all():
                return name
        return None

    def save(self, folder, tag, state):
        (folder / tag).mkdir(parents=True, exist_ok=True)
        torch.save({"steps": self._steps, **self.module.state_dict()}, folder / tag / WEIGHTS)

    def load(self, folder, tag):
        state = torch.load(folder / tag / WEIGHTS, weights_only=True)
        self._steps = state.pop("steps")
        self.module.load_state_dict(state)


def train(run_dir, sample, allowed=(), resume="auto", engine=PlainEngine, **options):
    """Train a tiny run in this process, or go on with it, as the command does; `options` as
    `conftest.tiny_run` takes them."""
    gpt = {"data_root": str(sample), "run_dir": str(run_dir), **options.pop("gpt", {})}
    return train_config(
        load(write_run(run_dir.parent, gpt=gpt, **options)), allowed, resume, engine
    )


def train_config(config, allowed=(), resume="auto", engine=PlainEngine):
    """The same with a configuration that is resolved already."""
    trainer = Trainer(config, Dataset(config.options.data_root), 0, 1, KERNELS, resume, allowed)
    try:
        trainer.train(engine, World(0, 1, torch.device("cpu")))
    finally:
        trainer.lock.release()
        if trainer.stop_request is not None:
            trainer.stop_request.close()
    return trainer
