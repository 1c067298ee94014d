"""Checkpoints as folders of files: staging, committing, finding, reading without running code. Knows no DeepSpeed.

    runs/24h/checkpoints/latest                 the name of the newest whole checkpoint
    runs/24h/checkpoints/global_step1000/       DeepSpeed's files, config.yaml, tokenizer.model, and files.json with
                                                the size and sha256 of each
    runs/24h/checkpoints/.global_step1500.staging/   one that is being written, or what a crash left of one
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
import yaml

from gpt.errors import UserError
from gpt.files import hash_file, sync, write_atomically

LATEST = "latest"
FILES = "files.json"
CONFIG = "config.yaml"


def tag_of(step: int) -> str:
    return f"global_step{step}"


def staging_tag(step: int) -> str:
    """Name under which a checkpoint is written before it is whole."""
    return f".{tag_of(step)}.staging"


def commit(folder, step: int) -> Path:
    """Make the staged checkpoint of `step` the latest one. Called by one process, after all have written."""
    folder = Path(folder)
    staged, final = folder / staging_tag(step), folder / tag_of(step)
    files = {path.name: hash_file(path) for path in sorted(staged.iterdir())}
    (staged / FILES).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    for path in staged.iterdir():
        sync(path)
    sync(staged)
    if final.exists():  # the same step, saved before a resume: replaced as a whole
        old = folder / f".{tag_of(step)}.old"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(staged, final)
    write_atomically(folder / LATEST, final.name + "\n")
    shutil.rmtree(folder / f".{tag_of(step)}.old", ignore_errors=True)
    return final


def discard_leftovers(folder):
    """Remove what a crash left half-written."""
    for path in Path(folder).glob(".global_step*"):
        shutil.rmtree(path, ignore_errors=True)


def verify(folder):
    """Raise UserError unless every file of a committed checkpoint is as it was written."""
    folder = Path(folder)
    try:
        files = json.loads((folder / FILES).read_text(encoding="utf-8"))
        files = {str(name): dict(facts) for name, facts in files.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / FILES} cannot be read, so the checkpoint cannot be verified: use another one (--tag, "
                        "or its name in the file `latest`)") from error
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: use another checkpoint (--tag, or its name in the file `latest`)")
        if hash_file(path) != facts:
            raise UserError(f"{path} is not as it was written (its sha256 differs): use another checkpoint (--tag, or its "
                            "name in the file `latest`)")


def _committed(folder) -> list:
    return sorted((p.name for p in Path(folder).glob("global_step*") if p.is_dir()), key=lambda name: (len(name), name))


def latest(folder) -> str | None:
    """Tag of the newest committed checkpoint, or None where the folder has none. Raises UserError for a folder with
    checkpoints of which none is named, since starting afresh would overwrite them."""
    pointer = Path(folder) / LATEST
    try:
        tag = pointer.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        tag = None
    there = _committed(folder)
    if tag is None and not there:
        return None
    if tag is None or tag not in there:
        found = f"names {tag[:80]!r}, which is not there" if tag is not None else "is missing"
        raise UserError(f"{pointer} {found}: write the name of a checkpoint into it ({', '.join(there) or 'none is there'})")
    return tag


def resolve(folder, tag=None) -> Path:
    """The checkpoint that a user means: CHECKPOINT_DIR with a tag, with `latest`, or the checkpoint's own folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a run's checkpoints folder, such as runs/quickstart/checkpoints")
    if tag is None and (folder / CONFIG).is_file() and any(folder.glob("*_model_states.pt")):
        return folder
    tag = tag or latest(folder)
    if tag not in _committed(folder):
        there = ", ".join(_committed(folder))
        raise UserError(f"{folder} has no checkpoint{f' {tag!r}' if tag else ''}: "
                        + (f"it has {there}" if there else "train first, or give a run's checkpoints folder"))
    return folder / tag


def read_config(path) -> dict:
    """The resolved configuration that stands beside a checkpoint or consolidated weights."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}; the config.yaml "
                        "that was written beside the checkpoint is needed (--config_file)") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]}): use the config.yaml that was written "
                        "beside the checkpoint") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict) or not isinstance(found.get("run"), dict):
        raise UserError(f"{path} is not the config.yaml of a run: it lacks the blocks `model` and `run`")
    return found


def write_config(path, config: dict):
    write_atomically(Path(path), yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def load_weights_only(path, classes=(), map_location="cpu", mmap=False):
    """torch.load that builds tensors, plain values and the named classes only; anything else is a UserError.

    classes: classes, or (class, "module.name") to let a class of our own stand in for a pickled name.
    """
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        if "Unsupported" in reason or "GLOBAL" in reason:
            raise UserError(f"{path} holds code or types that a checkpoint does not need, and was not loaded: "
                            "it was not written by this trainer") from error
        raise UserError(f"{path} is damaged: {reason[:120]}") from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0][:120]}") from error
