"""A pack as its checks see it: every file is read when a check asks for it, and believed by
none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.code_files import require_trust
from gpt.checkpoint.manifest import WEIGHTS
from gpt.config.saved import CONFIG, read_run_config
from gpt.data.datasets import Dataset
from gpt.errors import UserError, in_words
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run
from gpt.packs import seal
from gpt.referee import entry
from gpt.referee.entry import EXPORT
from gpt.referee.scores import documents_file
from gpt.referee.tuning import has_diverged
from gpt.results import document_sums, evaluations
from gpt.results.document_sums import DocumentSums


class LeftOut(Exception):
    """A check that cannot be made here. The message says what it lacks."""


@dataclass(frozen=True)
class Declared:
    """A run that an entry declares."""

    name: str
    side: str
    seed: int


class Evidence:
    """What a pack holds. Its readers raise UserError where a file is missing or damaged.

    data_root: of the dataset; None for the one that the runs name. trusted: whether code that came
    with the pack may be run.
    """

    def __init__(self, path: Path, data_root: Path | None = None, trusted: bool = False):
        self.path = path
        self.data_root = data_root
        self.trusted = trusted
        self.config = _Once(self._config)
        self.run = _Once(self._run)
        self.evaluation = _Once(self._evaluation)
        self.documents = _Once(self._documents)

    @cached_property
    def entry(self) -> entry.Entry:
        return entry.read(self.path)

    @cached_property
    def pack(self) -> seal.Pack:
        return seal.read(self.path)

    @cached_property
    def declared(self) -> list[Declared]:
        """The final runs, seed by seed."""
        return [
            Declared(self.entry.run_name(side, seed), side, seed)
            for seed in self.entry.seeds
            for side in entry.SIDES
        ]

    @property
    def trials(self) -> list[Declared]:
        """The trials of the tuning whose folders are there."""
        names = self.entry.trial_names.items()
        trials = [Declared(name, side, self.entry.tuning.seed) for name, (side, _) in names]
        return [trial for trial in trials if self.is_there(trial.name)]

    def folder(self, name: str) -> Path:
        """Of a final run, or a trial."""
        is_trial = name in self.entry.trial_names
        return (self.entry.tuning_runs if is_trial else self.entry.runs) / name

    def weights(self, name: str) -> Path:
        return self.folder(name) / EXPORT / WEIGHTS

    def is_there(self, name: str) -> bool:
        return self.folder(name).is_dir()

    @property
    def present(self) -> list[Declared]:
        """Those of the declared runs whose folders are there; of the others `seeds` tells."""
        return [run for run in self.declared if self.is_there(run.name)]

    @property
    def scored(self) -> list[Declared]:
        """Those that have an evaluation: not what diverged, which is a result by itself."""
        return [run for run in self.present if not self.has_diverged(run.name)]

    def has_diverged(self, name: str) -> bool:
        try:
            return has_diverged(self.run(name))
        except UserError:
            return False

    def _config(self, name: str) -> dict[str, Any]:
        """A run's config.yaml."""
        return read_run_config(self.folder(name) / CONFIG)

    def _run(self, name: str) -> Run:
        """A run with its metrics. Raises UserError where these contradict themselves, too."""
        return read_run(self.folder(name))

    def options(self, name: str) -> dict[str, Any]:
        """The block "gpt" of a run's config.yaml."""
        return self.config(name)["run"]["gpt"]

    def last_step(self, name: str) -> int:
        return self.options(name)["max_train_steps"]

    def _evaluation(self, name: str) -> dict[str, Any]:
        """The evaluation of the whole split after a run's last step."""
        split, step = self.options(name)["eval_data_split"], self.last_step(name)
        folder = self.folder(name)
        evaluation = evaluations.read(folder, self.config(name), split, step)
        if evaluation is None:
            path = evaluations.file_of(folder, split, step)
            raise UserError(f"{path} is missing, the evaluation after the run's last step")
        return evaluation

    def _documents(self, name: str) -> DocumentSums:
        """The same by document."""
        split, step = self.options(name)["eval_data_split"], self.last_step(name)
        return document_sums.read(documents_file(self.folder(name), split, step))

    def export(self, name: str) -> Checkpoint:
        """The folder of a run's consolidated weights."""
        return Checkpoint.open(self.folder(name) / EXPORT)

    def require_trust(self, name: str) -> None:
        """Raise LeftOut where a run's own code would have to be run, and must not be."""
        try:
            require_trust(self.config(name), self.folder(name) / EXPORT, self.trusted)
        except UserError as error:
            raise LeftOut(str(error)) from error

    def dataset(self, name: str) -> Dataset:
        """The dataset that a run is trained and scored on. Raises LeftOut where it is not here."""
        root = self.data_root or Path((self.config(name).get("dataset") or {}).get("root") or "")
        if not self.data_root and not root.is_dir():
            raise LeftOut(f"the dataset {root} is not here: name it by --data_root")
        return _opened(root)


@cache
def _opened(root: Path) -> Dataset:
    return Dataset(root)


Content = TypeVar("Content")


class _Once(Generic[Content]):
    """Reads something of each run once, and raises again what that raised: a hostile file may take
    its time."""

    def __init__(self, read: Callable[[str], Content]):
        self._read = read
        self._contents: dict[str, Content] = {}
        self._errors: dict[str, UserError] = {}

    def __call__(self, name: str) -> Content:
        if name in self._errors:
            raise self._errors[name]
        if name not in self._contents:
            try:
                self._contents[name] = self._read(name)
            except UserError as error:
                self._errors[name] = error
                raise
        return self._contents[name]


Check = Callable[[Evidence, list[str]], str]
"""(evidence, problems) -> what is right, in words. It adds a sentence to problems for all that is
wrong; raising UserError does the same and ends it, LeftOut says that it cannot be made."""


def of_each(
    runs: Iterable[Declared], problems: list[str], look: Callable[[Declared], Iterable[str]]
) -> None:
    """Add what `look` finds wrong with each run; one that cannot be read does not hide the
    others."""
    for run in runs:
        try:
            problems += look(run)
        except (UserError, OSError) as error:
            problems.append(str(in_words(error)))
