"""Short runs of a model file on two ranks, at every stage of ZeRO, held against plain torch.

The ranks are processes of this host that run one training after another, each by the trainer
itself: from the first step, on from a checkpoint, in bf16, with blocks computed again.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
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
from gpt.cluster.launch import free_port
from gpt.config.resolve import resolve
from gpt.config.run_config import Config
from gpt.contract.checks import Result
from gpt.contract.subject import Subject, own_name
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.errors import RunError, SilentError, UserError, in_words
from gpt.escaping import in_one_line
from gpt.evaluation import Evaluator, summary
from gpt.metrics import events
from gpt.metrics.runs import read_run

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
ROWS = 4
STEPS = 4
EVALUATED = 2  # batches of the held-out split
SECONDS = 300.0  # for all runs together
# after a rank has failed, for the other to find out by itself
GRACE_SECONDS = 10.0
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


class Runs:
    """The trainings of a model file in the shape of a subject, in a folder that is theirs."""

    def __init__(self, subject: Subject, data_root: Path, folder: Path):
        self._subject = subject
        self._data_root = data_root
        self._folder = folder

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

    @cached_property
    def _trials(self) -> list[Trial]:
        trials = [
            Trial("ZeRO 1", 1),
            Trial("ZeRO 1 resumed", 1, (STEPS // 2, STEPS)),
            Trial("ZeRO 2", 2),
            Trial("ZeRO 2 in bf16", 2, bf16=True),
            # DeepSpeed then multiplies matrices by a function of its own, in all that follows
            Trial("ZeRO 3", 3),
            Trial("ZeRO 3 resumed", 3, (STEPS // 2, STEPS)),
        ]
        if blocks_of(self._subject.model().body):
            trials.append(Trial("ZeRO 3 checkpointing", 3, activation_checkpointing=True))
        return trials

    def _checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "2 ranks", self._agree
        yield "ZeRO 2 in bf16", self._agrees_in_bf16
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

    # ---- The ranks

    def _train(self) -> str | None:
        """Train all trials; returns why one failed, and those after it are not trained."""
        plan: list[dict[str, Any]] = []
        for trial in self._trials:
            for steps in trial.lengths:
                plan.append({"name": trial.name, "tree": self.tree(trial, steps)})
        file = self._folder / "plan.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        ranks = self._start(file)
        try:
            self._wait(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return self._failure([entry["name"] for entry in plan])

    def _start(self, plan: Path) -> list[subprocess.Popen]:
        port = str(free_port())
        ranks = []
        for rank in range(RANKS):
            with open(self._log(rank), "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "gpt.training.contract_runs", str(plan)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(rank, port),
                )
            ranks.append(process)
        return ranks

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.log"

    def _wait(self, ranks: list[subprocess.Popen]) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in ranks):
            if any(process.returncode for process in ranks):
                end = min(end, time.monotonic() + GRACE_SECONDS)
            time.sleep(0.05)

    def _failure(self, names: list[str]) -> str | None:
        """By what the ranks wrote down, each: how many of the trainings it ended, and why no
        more."""
        reports: list[dict[str, Any]] = []
        for rank in range(RANKS):
            file = self._folder / f"rank{rank}.json"
            reports.append(json.loads(file.read_text()) if file.is_file() else {"ended": 0})
        ended = min(report["ended"] for report in reports)
        if ended == len(names):
            return None
        sentences = [str(report["error"]) for report in reports if "error" in report]
        why = sentences[0] if sentences else f"it did not end ({self._last_words()})"
        return f"trained on {RANKS} ranks at {names[ended]}: {why}"

    def _last_words(self) -> str:
        lines: list[str] = []
        for rank in range(RANKS):
            lines += self._log(rank).read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "error: " in line]
        words = errors[:1] or [line for line in lines if line.strip()][-1:]
        return in_one_line(words[0])[:300] if words else "nothing was said"

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
            if not trial.bf16:
                self._hold(trial, SAME_LOSS, SAME_NORM)
        return f"losses and gradient norms of {STEPS} steps as plain torch's, at ZeRO 1, 2 and 3"

    def _agrees_in_bf16(self) -> str:
        for trial in self._trials:
            if trial.bf16:
                self._hold(trial, SAME_LOSS_BF16, SAME_NORM_BF16)
        return "losses and gradient norms near plain torch's in fp32"

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
        for name in ("ZeRO 1", "ZeRO 3"):
            weights = self._weights(name)
            for parameter, values in self._weights(f"{name} resumed").items():
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


def _environment(rank: int, port: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
    }


def look(subject: Subject, data_root: Path, tell: Callable[[Result], object]) -> list[Result]:
    """What short runs on two ranks find, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="check_model-") as folder:
        return Runs(subject, data_root, Path(folder)).look(tell)


def rank() -> None:
    """Train a plan's runs as one of the ranks, and write down how far it came."""
    from gpt.engine import boundary
    from gpt.training.trainer import Trainer

    plan_file = Path(sys.argv[1])
    report: dict[str, Any] = {"ended": 0}
    own_rank = int(os.environ["RANK"])
    file = plan_file.with_name(f"rank{own_rank}.json")
    world = boundary.connect()
    try:
        for entry in json.loads(plan_file.read_text(encoding="utf-8")):
            config = resolve(entry["tree"], entry["name"], RANKS)
            dataset = Dataset(config.options.data_root)
            trainer = Trainer(config, dataset, own_rank, RANKS, ("torch", "a check"))
            try:
                trainer.train(boundary.Engine, world)
            finally:
                if trainer.lock is not None:
                    trainer.lock.release()
                if trainer.stop_request is not None:
                    trainer.stop_request.close()
            report["ended"] += 1
            file.write_text(json.dumps(report), encoding="utf-8")
    except (UserError, RunError, OSError) as error:
        file.write_text(json.dumps({**report, "error": str(in_words(error))}), encoding="utf-8")
        os._exit(1)
    except SilentError as silent:  # it is in the log
        os._exit(silent.code)
    boundary.disconnect()


if __name__ == "__main__":
    rank()
