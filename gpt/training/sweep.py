"""A sweep: runs trained one after another, each in a process of its own.

Finished runs are skipped, unfinished ones go on. OUT/sweep.json tells how far each is.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from gpt.checkpoint import folders
from gpt.config.option_names import option_of, path_of
from gpt.config.resolve import read
from gpt.config.run_config import Config
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.locking import FolderLock, LockedError
from gpt.metrics.runs import read_run
from gpt.parsing import parse_json
from gpt.reading import read_text
from gpt.training.run_data import RunData
from gpt.training.run_folder import require_own
from gpt.training.signals import heard

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "gpt" / "train.py"
CLASSES = ROOT / "ds_configs"
SUMMARY = "sweep.json"
POLL_SECONDS = 0.5

FINISHED = "finished"
UNFINISHED = "unfinished"
WAITING = "waiting"  # not begun
RUNNING = "running"
FAILED = "failed"
SPARED = "spared"  # a trunk that no class waits for any more
DIVERGED = "diverged"  # training it again would find the same


class Stop:
    """A request to stop, from a signal, which is passed on to the run that is training; a second
    SIGINT kills it."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._process: subprocess.Popen | None = None
        for number in heard():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.reason is not None and number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name
        self._pass_on(signal.SIGKILL if again else signal.SIGTERM)
        if again:
            os._exit(130)

    def _pass_on(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            # launcher and ranks: a launcher alone would leave them behind
            os.killpg(self._process.pid, number)

    def wait_for(self, process: subprocess.Popen) -> int:
        """Exit code of a process that leads a session of its own."""
        self._process = process
        if self.reason:
            self._pass_on(signal.SIGTERM)
        code = process.wait()
        self._process = None
        return code


class SweptRun:
    """One run of a sweep, which is kept in out/name. Raises UserError with its mistakes.

    own: {dotted path: value} of what it has for itself, beside the options of all. trunk: the run
    that it branches off from, after `first_step` steps.
    """

    def __init__(
        self,
        file: Path,
        class_name: str,
        seed: int | None,
        out: Path,
        overrides: dict[str, Any],
        own: dict[str, Any] | None = None,
        trunk: "SweptRun | None" = None,
        first_step: int = 0,
    ):
        self.file = file
        self.class_name = class_name
        self.seed = seed
        self._out = out
        self.trunk = trunk
        self.first_step = first_step
        self.name = class_name if seed is None else f"{class_name}-seed{seed}"
        self._own = {"gpt.run_dir": str(out / self.name), **(own or {})}
        if seed is not None:
            self._own["gpt.seed"] = seed
        draft = read(file, 1, {**overrides, **self._own})
        self._data = RunData(draft, may_be_absent=False)
        draft.add(self._data.mistakes())
        self.config: Config = draft.settle()
        require_own(self.config.run_dir)
        self.last_step: int = self.config.options.max_train_steps
        self.step = 0
        self.status = WAITING
        self.exit_code: int | None = None  # of its last start here
        self.final_evaluation: dict[str, Any] = {}
        self.reference_hours = self._planned_hours()

    def look(self) -> str:
        """Find out how far the run is; returns its status."""
        from gpt.training.start import reached  # it imports torch

        if self._data.awaits_sample:  # the first run builds it
            return self.status
        place = reached(self.config, self._data.open())
        self.step = place.step
        if place.has_diverged:
            self.status = DIVERGED
        elif place.finished:
            self.status = FINISHED
        elif self.step:
            self.status = UNFINISHED
        else:
            self.status = WAITING
        if self.status == FINISHED:
            self._read_results()
        return self.status

    @property
    def waits_for_trunk(self) -> bool:
        """Whether it has not begun, and where it begins there is no checkpoint."""
        if self.trunk is None or self.step or self.status in (FINISHED, DIVERGED):
            return False
        return not checkpoint_of(self.trunk.config.run_dir, self.first_step).is_dir()

    def _planned_hours(self) -> float | None:
        speed = self.config.options.tokens_per_second
        tokens = self.last_step * self.config.batch.train_batch_size * self.config.model.seq_len
        return tokens / speed / 3600 if speed else None

    def _read_results(self) -> None:
        """The evaluation of the last step, and the hours of the run as it was trained: a machine
        without fp16 has none of a class that was measured in it."""
        run = read_run(self.config.run_dir)
        final = run.whole() or run.final()
        if final and final["step"] == self.last_step:
            self.final_evaluation = final
        self.reference_hours = run.planned("reference_hours")

    def wait_for_others(self, stop: Stop | None = None) -> None:
        """Wait while processes of this run are still at work, such as those that a killed sweep
        left behind."""
        run_dir = self.config.run_dir
        is_announced = False
        while run_dir.exists() and not (stop and stop.reason):
            try:
                FolderLock(run_dir).release()
                return
            except LockedError:
                if not is_announced:
                    print(f"waiting for another process that is training in {run_dir}", flush=True)
                is_announced = True
                time.sleep(POLL_SECONDS)

    def train(self, launcher: list[str], train_args: list[str], stop: Stop) -> None:
        """launcher: the command that starts train.py, which gets train_args as well."""
        command = [*launcher, str(TRAIN), "--ds_config", str(self.file), *train_args]
        for path, value in self._own.items():
            # of an option that is given twice the last one counts
            command += [_spelling(path, train_args), *_words(value)]
        process = subprocess.Popen(command, start_new_session=True)
        code = self.exit_code = stop.wait_for(process)
        self.wait_for_others()  # a launcher may end before its ranks have saved
        if self.look() in (FINISHED, DIVERGED) or code == 0 or stop.reason:
            return
        self.status = FAILED
        print(f"{self.name} ended with exit code {code} at step {self.step}", flush=True)

    def summary(self) -> dict[str, Any]:
        """What sweep.json tells of the run."""
        return {
            "name": self.name,
            "run_dir": str(self.config.run_dir.relative_to(self._out)),
            "config": str(self.file),
            "class": self.class_name,
            "seed": self.config.options.seed,
            "reference_hours": self.reference_hours,
            "steps": self.last_step,
            "trunk": self.trunk.name if self.trunk else None,
            "steps_of_trunk": self.first_step,
            "status": self.status,
            "step": self.step,
            "normalised_loss": self.final_evaluation.get("normalised_loss"),
            "normalised_ppl": self.final_evaluation.get("normalised_ppl"),
        }


def plan(
    class_names: list[str], seeds: list[int] | None, out: Path, overrides: dict[str, Any]
) -> list[SweptRun]:
    """All runs, each checked before the first one starts. Raises UserError with the first
    mistake."""
    files = [class_file(name) for name in class_names]
    names = [file.stem for file in files]
    if len(set(names)) < len(names):  # families of classes in folders of their own
        names = [f"{file.resolve().parent.name}-{file.stem}" for file in files]
    _refuse_repeated("class", names)
    _refuse_repeated("seed", seeds or [])
    runs = []
    # None: the class's own
    seeds_of_runs: list[int | None] = [*seeds] if seeds else [None]
    for file, name in zip(files, names):
        for seed in seeds_of_runs:
            runs.append(SweptRun(file, name, seed, out, overrides))
    return runs


def checkpoint_of(run_dir: Path, step: int) -> Path:
    return folders.of_run(run_dir) / folders.tag_of(step)


def _spelling(path: str, train_args: list[str]) -> str:
    """The option that sets the value at a dotted path, as the command line has it already."""
    for word in train_args:
        option = word.partition("=")[0]
        if path_of(option) == path:
            return option
    return option_of(path)


def _words(value: Any) -> list[str]:
    """A value behind its option."""
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [value if isinstance(value, str) else json.dumps(value)]


def launcher_command(text: str | None) -> list[str]:
    """What starts train.py, word by word; this Python where no launcher is named. Raises
    UserError."""
    if not text:
        words = [sys.executable]
    else:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(f"command line: --launcher {text}: {error}") from error
    if shutil.which(words[0]) is None:
        raise UserError(f"command line: --launcher {words[0]}: there is no such command")
    return words


def _refuse_repeated(what: str, values: list) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"command line: the {what} {value} is given twice")


def class_file(name: str) -> Path:
    """The JSON of a class: a file, or one in ds_configs/."""
    shipped = CLASSES / f"{name}.json"
    if Path(name).is_file() or not shipped.is_file():
        return Path(name)  # where it is neither, reading it says so
    return shipped


def train_all(
    runs: list[SweptRun], out: Path, launcher: list[str], train_args: list[str], stop: Stop
) -> None:
    """Train what is not finished, until a request to stop; what fails does not stop the others."""
    _require_own_summary(out / SUMMARY)
    for run in runs:
        run.look()
    lock = FolderLock(out, "another sweep is at work in", "wait for it, or name another --out")
    write_summary(out, runs)
    for number, run in enumerate(runs, 1):
        if stop.reason:
            break
        run.wait_for_others(stop)
        if run.look() in (FINISHED, DIVERGED) or stop.reason:
            continue
        if _is_trunk_of_none(run, runs):
            run.status = SPARED
            continue
        place = f"run {number} of {len(runs)}"
        if run.waits_for_trunk:
            assert run.trunk is not None
            run.status = FAILED
            print(
                f"--- {place}: {run.name} cannot begin: its trunk has no checkpoint of step"
                f" {run.first_step}; move {run.trunk.config.run_dir} away to have the trunk trained"
                " again",
                flush=True,
            )
            continue
        step = max(run.step, run.first_step)
        print(f"--- {place}: {run.name}, from step {step} of {run.last_step}", flush=True)
        run.status = RUNNING
        write_summary(out, runs)
        run.train(launcher, train_args, stop)
        write_summary(out, runs)
    lock.release()


def _is_trunk_of_none(run: SweptRun, runs: list[SweptRun]) -> bool:
    """Whether a run is a trunk whose classes have all begun, so that none waits for it."""
    classes = [other for other in runs if other.trunk is run]
    return bool(classes) and not any(other.waits_for_trunk for other in classes)


def _require_own_summary(path: Path) -> None:
    """Raise UserError where a sweep would write over a file that no sweep wrote."""
    if not os.path.lexists(path):
        return
    try:
        summaries = parse_json(read_text(path))["runs"]
        is_own = not path.is_symlink() and all("status" in summary for summary in summaries)
    except (OSError, ValueError, LookupError, TypeError):
        is_own = False
    if not is_own:
        raise UserError(
            f"{path} was not written by a sweep, which would write over it",
            mend="name another --out, or move that file away",
        )


def write_summary(out: Path, runs: list[SweptRun]) -> None:
    summaries = [run.summary() for run in runs]
    write_atomically(out / SUMMARY, json.dumps({"runs": summaries}, indent=1) + "\n")


def table(runs: list[SweptRun]) -> str:
    """How far the runs are, as lines of text."""
    width = max(len(run.name) for run in runs)
    head = ("run", "steps", "reference hours", "normalised perplexity")
    lines = [_line(width, *head)]
    for run in runs:
        facts = run.summary()
        hours = facts["reference_hours"]
        hours_text = "-" if hours is None else f"{hours:.4g}"
        ppl = facts["normalised_ppl"]
        quality = facts["status"] if ppl is None else f"{ppl:.4f}"
        lines.append(_line(width, facts["name"], f"{facts['steps']:,}", hours_text, quality))
    return "\n".join(lines)


def _line(width: int, name: str, steps: str, hours: str, quality: str) -> str:
    return f"{name:{width}s} {steps:>9s} {hours:>15s} {quality:>21s}"
