"""What may lie in the folder that a run is kept in: nothing but what runs write. Looked at before
anything is written there. And where that folder is, once it was moved."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from gpt.checkpoint import folders, manifest
from gpt.checkpoint.manifest import WEIGHTS
from gpt.config.saved import CONFIG, read_config
from gpt.data import manifests
from gpt.errors import UserError
from gpt.locking import FolderLock
from gpt.metrics.events import METRICS, TENSORBOARD
from gpt.metrics.lines import parse
from gpt.metrics.sinks import WANDB
from gpt.reading import open_regular
from gpt.training import run_documents

# of metrics.jsonl; the first event of a run is among its first lines
LOOKED_AT = 1 << 20
# a file that another kind of folder is known by -> what such a folder is
OTHER_KINDS = {
    manifest.MANIFEST: "a checkpoint",
    WEIGHTS: "a folder of weights",
}
ANOTHER = "name another --run_dir"


def require_own(run_dir: Path, has_code: bool = False) -> None:
    """Raise UserError where a run that is kept in `run_dir` would write over something else, or
    among it: there is a file, a dataset, or a file of a name that a run uses which no run wrote.

    has_code: whether it keeps code of the user's own there.
    """
    own_folders = [folders.of_run(run_dir)]
    if has_code:
        own_folders.append(run_dir / folders.CODE_FOLDER)
    _require_folders(run_dir, *own_folders)
    _require_outside_of_checkpoints(run_dir)
    _require_outside_of_datasets(run_dir)
    for name, kind in OTHER_KINDS.items():
        if os.path.lexists(run_dir / name):
            raise UserError(f"{run_dir} is {kind} (it holds {name})", mend=ANOTHER)
    for name, problem_of in FILES.items():
        path = run_dir / name
        if os.path.lexists(path):
            _require_file_of_a_run(path, problem_of)
    _require_folders_of_a_run(run_dir, own_folders)


def where_it_went(run_dir: Path, lock: FolderLock) -> str:
    """What happened to a run's folder that was renamed, removed or replaced. lock: of it."""
    if lock.place is None:
        return f"the run's folder {run_dir} was removed"
    return f"the run's folder {run_dir} was renamed: it is {lock.place} now"


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a kill left of files that were being written. The run's folder is locked."""
    for name in (CONFIG, run_documents.FILE, f"{WANDB}/id"):
        path = run_dir / name
        for leftover in path.parent.glob(f".{path.name}.{8 * '[0-9a-f]'}.new"):
            leftover.unlink()
    for leftover in (run_dir / folders.CODE_FOLDER).glob(f".*.py.{8 * '[0-9a-f]'}.new"):
        leftover.unlink()


def _require_folders(*paths: Path) -> None:
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere", mend=f"mend it, or {ANOTHER}")
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is a file, where a run wants to be kept", mend=ANOTHER)


def _require_outside_of_checkpoints(run_dir: Path) -> None:
    place = run_dir.absolute()
    for path in (place, *place.parents):
        if path == folders.of_run(path.parent) and (path.parent / CONFIG).exists():
            raise UserError(
                f"--run_dir {run_dir} is among the checkpoints of the run {path.parent}",
                mend="name a folder outside of it",
            )


def _require_outside_of_datasets(run_dir: Path) -> None:
    place = run_dir.resolve()
    for path in (place, *place.parents):
        names = (manifests.MANIFEST, manifests.TOKENIZER)
        if all((path / name).is_file() for name in names):
            raise UserError(
                f"--run_dir {run_dir} is in the dataset {path}", mend="name a folder outside of it"
            )


def _require_file_of_a_run(path: Path, problem_of: Callable[[Path], str | None]) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(f"{path} is a link or no file, and a run writes there", mend=ANOTHER)
    problem = problem_of(path)
    if problem is not None:
        raise UserError(
            f"{problem}, and a run would write over it", mend=f"{ANOTHER}, or move that file away"
        )


def _require_folders_of_a_run(run_dir: Path, own_folders: list[Path]) -> None:
    """Raise UserError where a folder that a run writes into is there, and no run."""
    if (run_dir / CONFIG).exists() or folders.committed(folders.of_run(run_dir)):
        return
    for path in (*own_folders, run_dir / TENSORBOARD, run_dir / WANDB):
        if path.is_dir() and os.listdir(path):
            raise UserError(
                f"{path} was not made by a run: {run_dir} has no {CONFIG}",
                mend=f"{ANOTHER}, or move that folder away",
            )


def _not_a_config(path: Path) -> str | None:
    try:
        read_config(path)
    except UserError as error:
        return error.what
    return None


def _no_events(path: Path) -> str | None:
    """Whether a metrics.jsonl has no event near its beginning, nor is the beginning of its first
    line, which is what a kill may leave."""
    with open_regular(path) as file:
        content = file.read(LOOKED_AT)
    lines = content.split(b"\n")
    if not content or (len(lines) == 1 and content.startswith(b'{"event": ')):
        return None
    if any(parse(line) is not None for line in lines):
        return None
    return f"{path} holds no event of a run"


def _no_documents(path: Path) -> str | None:
    with open_regular(path) as file:
        begins_so = file.read(len(run_documents.BEGINNING)) == run_documents.BEGINNING
    return None if begins_so else f"{path} was not written by a run"


# {name of a file in a run's folder: what says why a file of that name is not a run's, or None}
FILES = {CONFIG: _not_a_config, METRICS: _no_events, run_documents.FILE: _no_documents}
