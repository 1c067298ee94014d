"""Checkpoints as folders of files: staging, committing, finding, reading without running code.
Knows no DeepSpeed.

    runs/24h/checkpoints/latest                 the name of the newest whole checkpoint
    runs/24h/checkpoints/
        global_step1000/            DeepSpeed's files, config.yaml, tokenizer.model, and
                                    checkpoint.json: step, tokens, ranks, a probe batch with its
                                    loss, and every file's size and sha256. It is written last, so
                                    it marks a whole checkpoint.
        .global_step1500.staging/   one that is being written, or what a crash left of one
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from gpt.checkpoint import folders
from gpt.config.saved import (
    CONFIG,
)
from gpt.errors import UserError, in_brief
from gpt.files import hash_file, sync, write_atomically

FACTS = {
    "step": int,
    "evaluated_step": (int, type(None)),
    "left_out": list,
    "losses": list,
    "probe": dict,
    "ranks": int,
    "precision": str,
    "zero_stage": int,
    "loss_scale": (int, float),
    "seconds": (int, float),
}

LATEST = "latest"
MANIFEST = "checkpoint.json"
FORMAT = 2
# Relative difference between two computations of the probe batch's loss from the same weights:
# summation order in fp32; in 16 bits also the rounding of weights and activations, since
# consolidated weights are the fp32 ones.
PROBE_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
# times the tolerance of 16 bits, up to which a consolidated file is doubtful, not wrong
PROBE_DOUBT = 5


def tag_of(step: int) -> str:
    return f"global_step{step}"


def staging_tag(step: int) -> str:
    """Name under which a checkpoint is written before it is whole."""
    return f".{tag_of(step)}.staging"


def own_files(folder, rank: int) -> dict:
    """{name: size and sha256} of the files that `rank` wrote into a staged checkpoint, written
    through to the disk."""
    mine = [path for path in sorted(Path(folder).iterdir()) if rank_of(path) == rank]
    for path in mine:
        sync(path)
    return {path.name: hash_file(path) for path in mine}


def rank_of(path) -> int:
    """The rank whose part of a checkpoint a file is; 0 for what all share."""
    found = re.match(r"(?:bf16_)?zero_pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def commit(folder, step: int, files: dict, facts: dict) -> Path:
    """Make the staged checkpoint of `step` the latest one. Called by one process, after all have
    written.

    files: {name: size and sha256} of everything in it. facts: what else its manifest shall hold.
    """
    folder = Path(folder)
    staged, final, old = (
        folder / name for name in (staging_tag(step), tag_of(step), f".{tag_of(step)}.old")
    )
    write_manifest(staged, {"format": FORMAT, "step": step, **facts, "files": files})
    # the same step, saved before a resume: set aside until the new one stands
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(staged, final)
    sync(folder)
    write_atomically(folder / LATEST, final.name + "\n")
    shutil.rmtree(old, ignore_errors=True)
    return final


def clean_up(folder):
    """Undo what a crash or a failed save left: half-written checkpoints go, one that was set aside
    while its successor did not stand yet comes back."""
    for path in Path(folder).glob(".global_step*"):
        tag = path.name[1:].rpartition(".")[0]
        if path.name.endswith(".old") and not (Path(folder) / tag).exists():
            os.rename(path, Path(folder) / tag)
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in Path(folder).glob(".*.new"):
        path.unlink()


def retain(folder, keep_last: int, keep_every: int):
    """Delete committed checkpoints but the newest `keep_last` and those at multiples of
    `keep_every` steps; 0 or less keep_last keeps all. The one that `latest` names always stays, and
    so do those after it. Raises OSError, after the others, where one cannot be removed."""
    if keep_last <= 0:
        return
    named = latest(folder)
    tags = committed(folder)
    # newer ones are of a course that the run went back from
    tags = tags[: tags.index(named) + 1] if named else []
    failure = None
    for tag in tags[:-keep_last]:
        step = int(tag.removeprefix("global_step"))
        if tag != named and not (keep_every > 0 and step % keep_every == 0):
            # out of sight at once, so that no half of it can be found
            doomed = Path(folder) / f".{tag}.staging"
            try:
                os.rename(Path(folder) / tag, doomed)
            except OSError as error:
                failure = error
            shutil.rmtree(doomed, ignore_errors=True)
    if failure is not None:
        raise failure


def write_manifest(folder, manifest: dict):
    """Write checkpoint.json with a sha256 of its own content."""
    write_atomically(
        Path(folder) / MANIFEST, json.dumps({**manifest, "sha256": _seal(manifest)}) + "\n"
    )


def _seal(manifest):
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder) -> dict:
    """The manifest of a committed checkpoint. Raises UserError where there is none, or none that
    can be read."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["sha256"] != _seal(manifest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or damaged, so the checkpoint was not committed or cannot be"
            " verified: use another one"
        ) from error
    return manifest


def verify(folder) -> dict:
    """The manifest of a checkpoint of which every file is as it was written; UserError names the
    first that is not."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: use another checkpoint")
        try:
            whole = path.stat().st_size == facts["size"] and hash_file(path) == facts
        except OSError as error:
            raise UserError(f"{in_brief(error, path)}: use another checkpoint") from error
        if not whole:
            raise UserError(
                f"{path} is not as it was written (its size or sha256 differs): use another"
                " checkpoint"
            )
    return manifest


def committed(folder) -> list:
    """Tags of the checkpoints in a folder, oldest first."""
    tags = [
        path.name
        for path in Path(folder).glob("global_step*")
        if path.is_dir() and path.name[11:].isdecimal()
    ]
    return sorted(tags, key=lambda tag: int(tag[11:]))


def go_back(folder, tag: str):
    """Have a run that ends now go on from an earlier checkpoint than its newest."""
    write_atomically(Path(folder) / LATEST, tag + "\n")


def _pointed_at(folder):
    try:
        return (Path(folder) / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def latest(folder) -> str | None:
    """Tag that `latest` names; the newest committed one where it names none that is there; None
    without any."""
    tags, named = committed(folder), _pointed_at(folder)
    return named if named in tags else tags[-1] if tags else None


def newest_good(folder, notices: list) -> str | None:
    """Tag of the latest checkpoint that is whole; `notices` gets a sentence for each newer one that
    is not.

    None where the folder never had one. Raises UserError where it has some and none is whole, or
    where all are gone.
    """
    tag, tags = latest(folder), committed(folder)
    if tag is None and _pointed_at(folder) is not None:
        raise UserError(
            f"{Path(folder) / LATEST} names a checkpoint, but none is there: bring one back from a"
            " copy, or remove that file to start afresh"
        )
    if tag is None:
        return None
    if tag != _pointed_at(folder):
        notices.append(
            f"{Path(folder) / LATEST} does not name a checkpoint that is there: taking {tag}"
        )
    for candidate in reversed(tags[: tags.index(tag) + 1]):
        try:
            verify(Path(folder) / candidate)
            return candidate
        except UserError as error:
            notices.append(f"CHECKPOINT NOT USED: {error}; going back to an earlier one")
    raise UserError(
        f"no checkpoint in {folder} is whole ({notices[-1].removeprefix('CHECKPOINT NOT USED: ')}):"
        " bring one back from a copy, or start afresh in another --run_dir"
    )


def whole(folder):
    """(tag, manifest) of the checkpoints up to the latest one that are whole, newest first, each
    verified when it is asked for."""
    tags = committed(folder)
    for tag in reversed(tags[: tags.index(latest(folder)) + 1] if tags else []):
        try:
            yield tag, verify(Path(folder) / tag)
        except UserError:
            continue


def resolve(folder, tag=None) -> Path:
    """The checkpoint that a user means: CHECKPOINT_DIR with a tag, with `latest`, or the
    checkpoint's own folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give a run's checkpoints folder, such as"
            " runs/quickstart/checkpoints"
        )
    if tag is None and (folder / CONFIG).is_file() and any(folder.glob("*_model_states.pt")):
        return folder
    tag = tag or latest(folder)
    if tag not in committed(folder):
        there = ", ".join(committed(folder))
        inside = folder / "checkpoints"
        advice = (
            f"it has {there}"
            if there
            else (
                f"give {inside}"
                if committed(inside)
                else ("train first, or give a run's checkpoints folder")
            )
        )
        raise UserError(f"{folder} has no checkpoint{f' {tag!r}' if tag else ''}: {advice}")
    return folder / tag


def require_facts(folder):
    manifest = folders.read_manifest(folder)
    wrong = [
        name
        for name, kind in FACTS.items()
        if name not in manifest or not isinstance(manifest[name], kind)
    ]
    if wrong:
        raise UserError(
            f"{folder / folders.MANIFEST} does not tell {wrong[0]}: another version of the"
            " trainer wrote it; go on with that one, or start afresh in another --run_dir"
        )
