"""One try: a workspace, what is damaged in it, the command, and the rules that it broke. A failure
is kept as a folder that can be run again."""

import json
import random
import resource
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .families import FAMILIES
from .invariant import Failure, failures
from .server import SECONDS, Command, Outcome, run
from .workspace import Workspace

CASE = "case.json"
FILES = "workspace.tar"
WORKSPACE = "w"


@dataclass(frozen=True)
class Result:
    """What came of a try."""

    family: str
    seed: int
    number: int
    command: Command
    outcome: Outcome
    broken: list[Failure]
    traceback: str  # of what nobody foresaw


class Fuzzer:
    """Tries below a folder of its own. material: the good inputs. plant: called in every command's
    process before it begins. seconds: for which a command may run."""

    def __init__(
        self,
        folder: Path,
        material: Path,
        plant: Callable[[], None] | None = None,
        seconds: float = SECONDS,
    ):
        self._space = folder / WORKSPACE
        self._material = material
        self._plant = plant
        self._seconds = seconds

    def try_one(self, family: str, seed: int, number: int) -> Result:
        space, command = self._set_up(family, seed, number)
        try:
            ran = run_in(space, command, self._plant, self._seconds)
        finally:
            space.remove()
        return Result(family, seed, number, command, *ran)

    def keep(self, result: Result, folder: Path) -> Path:
        """Write a failure's case: its inputs, its command, what it printed and broke."""
        case = folder / f"{result.family.replace(' ', '-')}-{result.seed}-{result.number}"
        if case.exists():
            return case
        case.mkdir(parents=True)
        space, command = self._set_up(result.family, result.seed, result.number)
        with tarfile.open(case / FILES, "w") as tar:
            tar.add(space.folder, ".")
        space.remove()
        (case / CASE).write_text(json.dumps(asdict(command), indent=1) + "\n")
        printed = result.outcome.stdout + b"\n---- stderr\n" + result.outcome.stderr
        (case / "printed.txt").write_bytes(printed)
        lines = [f"{failure.rule}: {failure.what}" for failure in result.broken]
        text = "\n".join([*lines, "", result.traceback])
        (case / "broken.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        return case

    def _set_up(self, family: str, seed: int, number: int) -> tuple[Workspace, Command]:
        """The same for the same numbers."""
        rng = random.Random(f"{family} {seed} {number}")
        space = Workspace(self._space, self._material)
        return space, FAMILIES[family](rng, space)


def again(case: Path, folder: Path) -> tuple[Outcome, list[Failure], str]:
    """Run a case that was kept, in a folder of its own."""
    command = Command(**json.loads((case / CASE).read_text()))
    space = Workspace(folder / WORKSPACE, case)
    shutil.rmtree(space.folder)
    with tarfile.open(case / FILES) as tar:
        tar.extractall(space.folder, filter="fully_trusted")
    return run_in(space, command)


def run_in(
    space: Workspace,
    command: Command,
    plant: Callable[[], None] | None = None,
    seconds: float = SECONDS,
) -> tuple[Outcome, list[Failure], str]:
    """(how a command ended, the rules that it broke, the traceback of what nobody foresaw)"""
    before = space.listing()
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcome = run(command, space.folder, plant, seconds)
    after = space.listing()
    broken = failures(command, outcome, before, after, space.folder, own_peak)
    reports = sorted((space.folder / "tmp").glob("gpt-error-*"))
    traceback = "".join(path.read_text(encoding="utf-8") for path in reports)
    return outcome, broken, traceback
