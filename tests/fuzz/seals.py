"""What somebody would do who damages a file on purpose: the sha256s that tell of it made anew."""

import hashlib
import json
import os
import stat
from pathlib import Path

from .hostile import as_json


def renew(workspace: Path, damaged: Path) -> None:
    """Make the hashes and the seals anew that a damaged file is told by."""
    for folder in damaged.parents:
        if not folder.is_relative_to(workspace):
            return
        _renew_checkpoint(folder)
        _renew_dataset(folder)
        _renew_pack(folder)
    if damaged.name == "metrics.jsonl" and _is_plain(damaged):
        _renew_chain(damaged)
    unit = damaged.with_suffix(".jsonl")
    if damaged.suffix == ".tokens" and _is_plain(unit) and _is_plain(damaged):
        _, *records = unit.read_text(encoding="utf-8").splitlines()
        unit.write_text("\n".join([json.dumps(_facts(damaged)), *records]) + "\n")


def _renew_chain(path: Path) -> None:
    """Of the lines that still end with their chain."""
    before = hashlib.sha256().hexdigest()[:16]
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        body, mark, _ = line.rpartition(b', "chain": "')
        if mark and line.endswith(b'"}\n'):
            before = hashlib.sha256(before.encode() + body).hexdigest()[:16]
            line = body + mark + before.encode() + b'"}\n'
        lines.append(line)
    path.write_bytes(b"".join(lines))


def _renew_pack(folder: Path) -> None:
    content = _tree(folder / "pack.json")
    if content is None:
        return
    _renew_facts(folder, content.get("files"))
    (folder / "pack.json").write_text(as_json(content))


def _renew_checkpoint(folder: Path) -> None:
    manifest = _tree(folder / "checkpoint.json")
    if manifest is None:
        return
    _renew_facts(folder, manifest.get("files"))
    manifest.pop("sha256", None)
    text = json.dumps(manifest, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest) + "\n")


def _renew_dataset(folder: Path) -> None:
    manifest = _tree(folder / "manifest.json")
    if manifest is None:
        return
    tokenizer = folder / "tokenizer.model"
    if isinstance(manifest.get("tokenizer"), dict) and _is_plain(tokenizer):
        manifest["tokenizer"]["sha256"] = _facts(tokenizer)["sha256"]
    splits = manifest.get("splits")
    for name, split in splits.items() if isinstance(splits, dict) else ():
        if isinstance(split, dict):
            _renew_facts(folder / name.replace("\x00", ""), split.get("files"))
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = "0" * 64
    text = as_json(manifest) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(text.replace("0" * 64, seal))


def _renew_facts(folder: Path, files: object) -> None:
    """Of {name: facts}, those of the files that are there."""
    for name in files if isinstance(files, dict) else ():
        path = folder / name.replace("\x00", "")
        if len(os.fsencode(name.encode("utf-8", "replace"))) < 255 and _is_plain(path):
            files[name] = _facts(path)


def _facts(path: Path) -> dict:
    content = path.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _tree(path: Path) -> dict | None:
    """The JSON of a file, where it is a block still."""
    if not _is_plain(path):
        return None
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None
