"""A forger at work on a pack: what must be renewed so that a change is not seen at once."""

import hashlib
import json
import shutil
from pathlib import Path

import yaml

from gpt.checkpoint.manifest import read_content, write_content
from gpt.files import hash_file
from gpt.metrics import chain


def renew_seal(pack):
    """Have pack.json tell the files as they are now."""
    amend_pack(pack, files=files_of(pack))


def files_of(pack):
    files = {}
    for path in sorted(Path(pack).rglob("*")):
        if path.is_file() and path.name != "pack.json":
            files[path.relative_to(pack).as_posix()] = hash_file(path)
    return files


def amend_pack(pack, **fields):
    path = Path(pack) / "pack.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **fields}, indent=1), encoding="utf-8")


def amend_run(pack, run, **fields):
    """Have pack.json tell other facts of a run."""
    content = json.loads((Path(pack) / "pack.json").read_text(encoding="utf-8"))
    content["runs"][run] |= fields
    amend_pack(pack, runs=content["runs"])


def lines_of(run):
    text = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_log(run, lines, chained=True):
    """A metrics.jsonl of other lines. chained: with a chain of its own."""
    before = hashlib.sha256().hexdigest()[: chain.DIGITS]
    written = []
    for line in lines:
        if chained:
            bare = {name: value for name, value in line.items() if name != "chain"}
            content, before = chain.linked(json.dumps(bare).encode(), before)
        else:
            content = json.dumps(line).encode()
        written.append(content + b"\n")
    (Path(run) / "metrics.jsonl").write_bytes(b"".join(written))


def renew_head(pack, run):
    """Have pack.json tell the head of a run's chain as it is now."""
    head = chain.head(Path(pack) / "runs" / run / "metrics.jsonl")
    amend_run(pack, run, chain=head)


def amend_starts(pack, change):
    """Chain starts.jsonl anew. change: makes another line of each, or None of one that goes."""
    path = Path(pack) / "starts.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    previous = "0" * 64
    written = []
    for line in filter(None, map(change, lines)):
        text = json.dumps({**line, "previous": previous})
        previous = hashlib.sha256(text.encode()).hexdigest()
        written.append(text + "\n")
    path.write_text("".join(written), encoding="utf-8")


def amend_json(path, **fields):
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    Path(path).write_text(json.dumps({**content, **fields}, indent=1) + "\n", encoding="utf-8")


def amend_config(path, change):
    """change: of the content of a config.yaml, in place."""
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    change(config)
    Path(path).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def renew_manifest(folder):
    """Have a checkpoint.json tell the files as they are now."""
    content = {name: value for name, value in read_content(folder).items() if name != "sha256"}
    content["files"] = {name: hash_file(Path(folder) / name) for name in content["files"]}
    write_content(folder, content)


def swap(folder, one, other):
    """Give a file the content of another, below a folder."""
    shutil.copyfile(Path(folder) / other, Path(folder) / one)
