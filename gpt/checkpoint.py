"""Checkpoints as folders of files: staging, committing, finding, reading without running code. Knows no DeepSpeed.

    runs/24h/checkpoints/latest                 the name of the newest whole checkpoint
    runs/24h/checkpoints/global_step1000/       DeepSpeed's files, config.yaml, tokenizer.model
    runs/24h/checkpoints/.global_step1500.staging/   one that is being written, or what a crash left of one
"""

import os
import pickle
import shutil
from pathlib import Path

import torch
import yaml

from gpt.errors import UserError

LATEST = "latest"
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
    for path in staged.iterdir():
        _sync(path)
    _sync(staged)
    if final.exists():  # the same step, saved before a resume: replaced as a whole
        old = folder / f".{tag_of(step)}.old"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(staged, final)
    _write_atomically(folder / LATEST, final.name + "\n")
    shutil.rmtree(folder / f".{tag_of(step)}.old", ignore_errors=True)
    return final


def discard_leftovers(folder):
    """Remove what a crash left half-written."""
    for path in Path(folder).glob(".global_step*"):
        shutil.rmtree(path, ignore_errors=True)


def latest(folder) -> str | None:
    """Tag of the newest committed checkpoint, or None where the folder has none."""
    pointer = Path(folder) / LATEST
    if not pointer.is_file():
        return None
    tag = pointer.read_text(encoding="utf-8").strip()
    if not (pointer.parent / tag).is_dir() or not tag:
        raise UserError(f"{pointer} names {tag!r}, which is not there: write the name of one of the global_step… "
                        "folders beside it into that file")
    return tag


def resolve(folder, tag=None) -> Path:
    """The checkpoint that a user means: CHECKPOINT_DIR with a tag, with `latest`, or the checkpoint's own folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a run's checkpoints folder, such as runs/quickstart/checkpoints")
    if tag is None and (folder / CONFIG).is_file() and any(folder.glob("*_model_states.pt")):
        return folder
    tag = tag or latest(folder)
    if tag is None or not (folder / tag).is_dir():
        there = sorted(path.name for path in folder.glob("global_step*") if path.is_dir())
        found = f"it has {', '.join(there)}" if there else "it has none"
        raise UserError(f"{folder} has no checkpoint {tag!r}: {found}" if tag else
                        f"{folder} has no file `latest`, so no checkpoint was committed there: {found}")
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
    _write_atomically(Path(path), yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


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


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomically(path: Path, text: str):
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)
