"""Short runs of a model file on two ranks, at every stage of ZeRO, held against plain torch.

The ranks are processes of this host that run one training after another, each by the trainer
itself: from the first step, on from a checkpoint, in bf16, with blocks computed again.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt.architecture.architecture import Architecture
from gpt.architecture.blocks import blocks_of
from gpt.checkpoint import folders
from gpt.checkpoint.zero_files import read_state
from gpt.config.options import SAMPLE
from gpt.config.resolve import resolve
from gpt.config.run_config import Config
from gpt.contract.checks import Result
from gpt.contract.subject import Subject, own_name
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.errors import UserError
from gpt.evaluation import Evaluator, summary
from gpt.metrics import events
from gpt.metrics.runs import read_run
from gpt.prepare.sample import prepare_sample
from gpt.training.contract_ranks import RANKS, train

ROWS = 4
STEPS = 4
EVALUATED = 2  # batches of the held-out split
# of losses and gradient norms in fp32, whose sums have other orders
SAME_LOSS = 1e-4
SAME_NORM = 1e-3
# in bf16, of which the stages round other sums
SAME_LOSS_BF16 = 0.01
SAME_NORM_BF16 = 0.05


class Trial(NamedTuple):
    """One training on two ranks."""

    name: str
    stage: int
    lengths: tuple[int, ...] = (STEPS,)  # in steps; each goes on from the one before
    bf16: bool = False
    activation_checkpointing: bool = False


TRIALS = (
    Trial("ZeRO 1", 1),
    Trial("ZeRO 1 resumed", 1, (STEPS // 2, STEPS)),
    Trial("ZeRO 2", 2),
    Trial("ZeRO 2 in bf16", 2, bf16=True),
    # DeepSpeed then multiplies matrices by a function of its own, in all that follows
    Trial("ZeRO 3", 3),
    Trial("ZeRO 3 resumed", 3, (STEPS // 2, STEPS)),
    Trial("ZeRO 3 with checkpointing", 3, activation_checkpointing=True),
)


class Runs:
    """Trials of a model file in the shape of a subject, in a folder that is theirs."""

    def __init__(
        self, subject: Subject, data_root: Path, folder: Path, trials: tuple[Trial, ...] = TRIALS
    ):
        self._subject = subject
        self._data_root = data_root
        self._folder = folder
        has_blocks = bool(blocks_of(subject.model().body))
        self._trials = [
            trial for trial in trials if has_blocks or not trial.activation_checkpointing
        ]

    def look(self, tell: Callable[[Result], object]) -> list[Result]:
        """Train all, and hold them against plain torch; each result is told when it is known."""
        failure = self._train()
        if failure:
            result = Result("runs", failure, is_right=False)
            tell(result)
            return [result]
        results = []
        for name, check in self._checks():
            try:
                result = Result(name, check(), is_right=True)
            except UserError as error:
                result = Result(name, str(error), is_right=False)
            results.append(result)
            tell(result)
        return results

    def _checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "2 ranks", self._agree
        yield "resume", self._resumes
        yield "evaluation", self._evaluates

    def tree(self, trial: Trial, steps: int) -> dict[str, Any]:
        """JSON of a trial's run."""
        shape = dataclasses.asdict(self._subject.shape)
        tree: dict[str, Any] = {
            "train_batch_size": ROWS,
            "gradient_accumulation_steps": ROWS // RANKS,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": trial.stage},
            "optimizer": {
                "type": "Adam",
                "params": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
            },
            "scheduler": {
                "type": "LanguiniCosineLR",
                "params": {"max_lr": 1e-3, "warmup_steps": 1, "decay_steps": STEPS},
            },
            "gpt": {
                **shape,
                "model_file": str(self._subject.code.path),
                "model_options": dict(self._subject.architecture.options),
                "activation_checkpointing": trial.activation_checkpointing,
                "data_root": str(self._data_root),
                "run_dir": str(self._run_dir(trial.name)),
                "max_train_steps": steps,
                "eval_every": STEPS,
                "max_eval_steps": EVALUATED,
                "eval_batch_size": 2 * RANKS,
                "final_eval": False,
                "log_ckpt_every": 0,
                "log_grads_every": 0,
                "logger_type": "none",
            },
        }
        if trial.bf16:
            tree["bf16"] = {"enabled": True}
        return tree

    def _train(self) -> str | None:
        """Train all trials; returns why one failed."""
        plan: list[dict[str, Any]] = []
        for trial in self._trials:
            for steps in trial.lengths:
                plan.append({"name": trial.name, "tree": self.tree(trial, steps)})
        return train(plan, self._folder)

    # ---- What plain torch makes of the same batches

    @cached_property
    def _config(self) -> Config:
        return resolve(self.tree(Trial("reference", 1), STEPS), "reference", RANKS)

    @cached_property
    def _dataset(self) -> Dataset:
        return Dataset(self._data_root)

    @cached_property
    def _reference(self) -> tuple[list[float], list[float]]:
        """(losses, gradient norms) of the steps of torch's own Adam in one process."""
        config = self._config
        architecture = Architecture.of(config)
        weights = dict(architecture.build().initial_weights(config.options.seed))
        model = self._subject.model(weights)
        params = config.deepspeed["optimizer"]["params"]
        adam = torch.optim.Adam(model.parameters(), betas=params["betas"], eps=params["eps"])
        losses = []
        norms = []
        for step, batch in enumerate(self._batches(), 1):
            adam.zero_grad()
            losses.append(self._subject.backward(model, batch).item())
            norms.append(_norm(model))
            assert config.schedule is not None
            adam.param_groups[0]["lr"] = config.schedule.lr(step)
            adam.step()
        return losses, norms

    def _batches(self) -> Iterator[Tensor]:
        streams = Streams(self._dataset.split("train"), ROWS, self._subject.shape.seq_len)
        for index in range(STEPS):
            yield torch.from_numpy(streams.batch(index)).reshape(ROWS, -1)

    # ---- What is held against it

    def _curve(self, name: str, kind: str = events.TRAIN) -> list[dict]:
        return read_run(self._run_dir(name)).events[kind]

    def _agree(self) -> str:
        for trial in self._trials:
            if trial.bf16:
                self._hold(trial, SAME_LOSS_BF16, SAME_NORM_BF16)
            else:
                self._hold(trial, SAME_LOSS, SAME_NORM)
        names = [trial.name for trial in self._trials if len(trial.lengths) == 1]
        return f"losses and gradient norms of {STEPS} steps as plain torch's, at {', '.join(names)}"

    def _hold(self, trial: Trial, same_loss: float, same_norm: float) -> None:
        losses, norms = self._reference
        for event, loss, norm in zip(self._curve(trial.name), losses, norms, strict=True):
            pairs = (("loss", loss, same_loss), ("gradient norm", norm, same_norm))
            for (what, expected, tolerance), found in zip(
                pairs, (event["loss"], event["grad_norm"])
            ):
                if found is None or not math.isclose(found, expected, rel_tol=tolerance):
                    raise self._subject.mistake(
                        f"on {RANKS} ranks at {trial.name} the {what} of step {event['step']} is"
                        f" {found}, and {expected:.6g} in plain torch",
                        mend="use each submodule by calling it, never its weight alone; where that"
                        " is so, leave this stage out",
                    )

    def _resumes(self) -> str:
        for trial in self._trials:
            if len(trial.lengths) == 1:
                continue
            name = f"ZeRO {trial.stage}"
            weights = self._weights(name)
            for parameter, values in self._weights(trial.name).items():
                if not torch.equal(values, weights[parameter]):
                    raise self._subject.mistake(
                        f"resumed at {name} after {STEPS // 2} of {STEPS} steps, its"
                        f" {own_name(parameter)} ends otherwise than without a stop",
                        mend="keep nothing in the module but parameters: only they are saved",
                    )
        return f"{STEPS // 2} steps and as many more give the weights of {STEPS}, bit by bit"

    def _run_dir(self, name: str) -> Path:
        return self._folder / name.replace(" ", "_")

    def _weights(self, name: str) -> dict[str, Tensor]:
        """fp32, of a trial's last checkpoint."""
        folder = folders.of_run(self._run_dir(name))
        return dict(read_state(folder / f"global_step{STEPS}").weights)

    def _evaluates(self) -> str:
        """Of weights put together from all ranks' parts, as in training."""
        options = self._config.options
        model = self._subject.architecture.with_weights(self._weights("ZeRO 3"))
        assert options.last_n is not None
        evaluator = Evaluator(
            self._dataset.split(options.eval_data_split),
            self._dataset.vocab,
            self._subject.shape.seq_len,
            options.last_n,
            options.eval_batch_size,
            max_batches=EVALUATED,
        )
        tally = evaluator.run(model, torch.device("cpu"))
        assert tally is not None
        found = summary(tally)["loss"]
        expected = self._curve("ZeRO 3", events.EVAL)[-1]["loss"]
        if not math.isclose(found, expected, rel_tol=SAME_LOSS):
            raise self._subject.mistake(
                f"evaluated from its consolidated weights its loss is {found:.6f}, in training"
                f" {expected:.6f}",
                mend="keep nothing in the module but parameters, and compute alike in train and"
                " eval mode",
            )
        return f"consolidated weights score {found:.4f} nats, as in training"


def _norm(model: torch.nn.Module) -> float:
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return torch.stack(squares).sum().sqrt().item()


def look(
    subject: Subject,
    data_root: Path,
    tell: Callable[[Result], object],
    trials: tuple[Trial, ...] = TRIALS,
) -> list[Result]:
    """What short runs on two ranks find, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="check_model-") as folder:
        return Runs(subject, data_root, Path(folder), trials).look(tell)


def look_on_sample(subject: Subject, tell: Callable[[Result], object]) -> list[Result]:
    """The same on the sample dataset that is here, or a new one for the time being."""
    if Path(SAMPLE).exists():
        return look(subject, Path(SAMPLE).resolve(), tell)
    with tempfile.TemporaryDirectory(prefix="check_model-") as folder:
        data_root = Path(folder) / "sample"
        prepare_sample(data_root, say=lambda text: None)
        return look(subject, data_root, tell)
