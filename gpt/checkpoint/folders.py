"""A run's checkpoints as folders of files: staging, committing, finding, going back.

runs/24h/checkpoints/latest                 the name of the newest whole checkpoint
runs/24h/checkpoints/
    global_step1000/            DeepSpeed's files, config.yaml, tokenizer.model, the files of
                                Python that the run has of the user's own, and
                                checkpoint.json: step, tokens, ranks, a probe batch with its
                                loss, and every file's size and sha256. It is written last, so
                                it marks a whole checkpoint.
    .global_step1500.staging/   one that is being written, or what a crash left of one
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.manifest import FILE_NAME, MANIFEST, Manifest
from gpt.config.saved import CONFIG
from gpt.errors import UserError
from gpt.files import hash_file, sync, write_atomically
from gpt.reading import read_text

CHECKPOINTS = "checkpoints"
# beside it: the run's files of the user's own code
CODE_FOLDER = "code"
LATEST = "latest"
_TAG = "global_step"
_LONGEST_TAG = 1000


def of_run(run_dir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run_dir / CHECKPOINTS


def tag_of(step: int) -> str:
    return f"{_TAG}{step}"


def step_of(tag: str) -> int:
    return int(tag.removeprefix(_TAG))


def staging_tag(step: int) -> str:
    """Name under which a checkpoint is written before it is whole."""
    return f".{tag_of(step)}.staging"


def _set_aside_tag(step: int):
    """Name of a checkpoint whose successor of the same step does not stand yet."""
    return f".{tag_of(step)}.old"


def own_files(folder: Path | str, rank: int) -> dict:
    """{name: size and sha256} of the files that `rank` wrote into a staged checkpoint, written
    through to the disk."""
    own = [
        path
        for path in sorted(Path(folder).iterdir())
        # a network's disk has hidden files of its own
        if rank_of(path) == rank and FILE_NAME.fullmatch(path.name)
    ]
    for path in own:
        sync(path)
    return {path.name: hash_file(path) for path in own}


def rank_of(path: Path) -> int:
    """The rank whose part of a checkpoint a file is; 0 for what all share."""
    match = re.match(r"(?:bf16_)?zero_pp_rank_(\d+)_.*\.pt", path.name)
    return int(match[1]) if match else 0


def commit(folder: Path | str, manifest: Manifest) -> Path:
    """Make the staged checkpoint of the manifest's step the latest one. Called by one process,
    after all have written."""
    folder = Path(folder)
    staged = folder / staging_tag(manifest.step)
    final = folder / tag_of(manifest.step)
    set_aside = folder / _set_aside_tag(manifest.step)
    manifest.write(staged)
    if os.path.lexists(final):  # the same step, saved before a resume
        _remove(set_aside)
        os.rename(final, set_aside)
    os.rename(staged, final)
    sync(folder)
    go_back(folder, final.name)
    _remove(set_aside)
    return final


def _remove(path: Path, ignore_errors: bool = True) -> None:
    """Remove a folder, as far as it can be; of a link the link, not what it points at."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors)


def clean_up(folder: Path | str) -> None:
    """Undo what a crash or a failed save left: half-written checkpoints go, one that was set aside
    while its successor did not stand yet comes back."""
    folder = Path(folder)
    for path in folder.glob(f".{_TAG}*"):
        tag = path.name[1:].rpartition(".")[0]
        is_set_aside = path.name.endswith(".old") and not path.is_symlink()
        if is_set_aside and not (folder / tag).exists():
            os.rename(path, folder / tag)
        else:
            _remove(path)
    for path in [*folder.glob(f".{LATEST}*.new"), *folder.glob(f"{_TAG}*/.{MANIFEST}.*.new")]:
        path.unlink()


def retain(
    folder: Path | str, keep_last: int, keep_every: int, keep_steps: Collection[int] = ()
) -> None:
    """Delete committed checkpoints but the newest `keep_last`, those at multiples of `keep_every`
    steps, and those of `keep_steps`; 0 or less keep_last keeps all. The one that `latest` names
    always stays, and so do those after it. Raises OSError, after the others, where one cannot be
    removed."""
    if keep_last <= 0:
        return
    folder = Path(folder)
    latest_tag = latest(folder)
    failure = None
    for tag in _up_to(folder, latest_tag)[:-keep_last]:
        step = step_of(tag)
        kept = step in keep_steps or (keep_every > 0 and step % keep_every == 0)
        if tag == latest_tag or kept:
            continue
        # out of sight at once, so that no half of it can be found
        doomed = folder / staging_tag(step_of(tag))
        try:
            _remove(doomed)
            os.rename(folder / tag, doomed)
            _remove(doomed, ignore_errors=False)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _up_to(folder: Path, latest_tag: str | None):
    """Tags up to the latest one, oldest first; newer ones are of a course that the run went back
    from."""
    if latest_tag is None:
        return []
    tags = committed(folder)
    return tags[: tags.index(latest_tag) + 1]


def committed(folder: Path | str) -> list[str]:
    """Tags of the checkpoints in a folder, oldest first."""
    tags = [
        path.name
        for path in Path(folder).glob(f"{_TAG}*")
        if path.is_dir() and path.name.removeprefix(_TAG).isdecimal()
    ]
    return sorted(tags, key=step_of)


def course(folder: Path | str) -> list[str]:
    """Tags of the checkpoints on the way to the latest one, oldest first."""
    return _up_to(Path(folder), latest(folder))


def go_back(folder: Path | str, tag: str) -> None:
    """Have a run that ends now go on from this checkpoint, whatever newer ones there are."""
    write_atomically(Path(folder) / LATEST, tag + "\n")


def _pointed_at(folder: Path):
    """What the file `latest` says; None without one. Raises OSError where it is no file."""
    try:
        return read_text(folder / LATEST, most=_LONGEST_TAG).strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:  # which names no checkpoint
        return ""


def latest(folder: Path | str) -> str | None:
    """Tag that `latest` names; the newest committed one where it names none that is there; None
    without any."""
    tags = committed(folder)
    pointed_at = _pointed_at(Path(folder))
    if pointed_at in tags:
        return pointed_at
    return tags[-1] if tags else None


def newest_good(folder: Path | str, notices: list) -> str | None:
    """Tag of the latest checkpoint that is whole; `notices` gets a sentence for each newer one that
    is not.

    None where the folder never had one. Raises UserError where it has some and none is whole, or
    where all are gone.
    """
    folder = Path(folder)
    latest_tag = latest(folder)
    pointed_at = _pointed_at(folder)
    if latest_tag is None and pointed_at is not None:
        raise UserError(
            f"{folder / LATEST} names a checkpoint, but none is there",
            mend="bring one back from a copy, or remove that file to start afresh",
        )
    if latest_tag is None:
        return None
    if latest_tag != pointed_at:
        notices.append(
            f"{folder / LATEST} does not name a checkpoint that is there: taking {latest_tag}"
        )
    for tag in reversed(_up_to(folder, latest_tag)):
        try:
            Checkpoint.open(folder / tag).verify()
            return tag
        except UserError as error:
            damage = f"{error}; going back to an earlier one"
            notices.append(f"CHECKPOINT NOT USED: {damage}")
    raise UserError(
        f"no checkpoint in {folder} is whole ({damage})",
        mend="bring one back from a copy, or start afresh in another --run_dir",
    )


def whole(folder: Path | str) -> Iterator[Checkpoint]:
    """The checkpoints up to the latest one that are whole, newest first, each verified when it is
    asked for."""
    folder = Path(folder)
    for tag in reversed(_up_to(folder, latest(folder))):
        try:
            yield Checkpoint.open(folder / tag).verify()
        except UserError:
            continue


def find(folder: Path | str, tag: str | None = None) -> Path:
    """The checkpoint that a user means: CHECKPOINT_DIR with a tag, with `latest`, or the
    checkpoint's own folder. Raises UserError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder",
            mend="give a run's checkpoints folder, such as runs/quickstart/checkpoints",
        )
    if tag is None and (folder / CONFIG).is_file() and any(folder.glob("*_model_states.pt")):
        return folder
    tag = tag or latest(folder)
    if tag is None or tag not in committed(folder):
        named = f" {tag!r}" if tag else ""
        raise UserError(f"{folder} has no checkpoint{named}", mend=_what_there_is(folder))
    return folder / tag


def _what_there_is(folder: Path):
    """What to give instead of a folder that has not the checkpoint."""
    tags = committed(folder)
    if tags:
        return f"it has {', '.join(tags)}"
    if committed(of_run(folder)):
        return f"give {of_run(folder)}"
    return "train first, or give a run's checkpoints folder"
