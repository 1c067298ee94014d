"""The documents that a run is trained and scored on, kept in its folder, so that a later change of
the dataset can be told in words.

    runs/24h/documents.json     {"fingerprint": of the dataset,
                                 "splits": {split: [[name, hash], …] in their order}}
"""

import json
from pathlib import Path

from gpt.data.datasets import Dataset, Split
from gpt.errors import UserError
from gpt.escaping import in_one_line
from gpt.files import write_atomically
from gpt.parsing import parse_json
from gpt.reading import open_regular
from gpt.wording import listed, plural

FILE = "documents.json"
BEGINNING = b'{"fingerprint": '
SHOWN = 3

Documents = list[tuple[str, str]]  # (name, what tells its text from others), in their order


def keep(run_dir: Path, dataset: Dataset, scored: str) -> None:
    """Note the documents of a run, unless they are. scored: the split that is evaluated."""
    kept = _read(run_dir)
    if kept.get("fingerprint") == dataset.fingerprint and scored in kept["splits"]:
        return
    splits = {name: _documents(dataset.split(name)) for name in ("train", scored)}
    content = {"fingerprint": dataset.fingerprint, "splits": splits}
    write_atomically(run_dir / FILE, json.dumps(content) + "\n")


def what_changed(run_dir: Path, split: str, fingerprint: str, root: str | Path) -> str | None:
    """In words, how the documents of a split of the dataset at `root` differ from those of the
    dataset with that fingerprint; None where that dataset's are not known any more."""
    kept = _read(run_dir)
    if kept.get("fingerprint") != fingerprint or split not in kept["splits"]:
        return None
    try:
        now = _documents(Dataset(root).split(split))
    except UserError:
        return None
    return difference([(name, text) for name, text in kept["splits"][split]], now)


def difference(before: Documents, now: Documents) -> str:
    """How two lists of documents differ, in words."""
    texts_before, texts_now = dict(before), dict(now)
    parts = [f"{plural(len(now), 'document')} where it had {len(before)}"]
    if len(now) == len(before):
        parts = []
    gone = [name for name in texts_before if name not in texts_now]
    new = [name for name in texts_now if name not in texts_before]
    others = [name for name, text in texts_now.items() if texts_before.get(name, text) != text]
    for what, names in (("gone", gone), ("new", new), ("of another text", others)):
        if names:
            parts.append(f"{what}: {listed([*map(in_one_line, names)], SHOWN)}")
    moved = [place for place, pair in enumerate(zip(before, now)) if pair[0] != pair[1]]
    if not parts and not moved:  # of datasets that know no more
        parts.append("of the same names and sizes, and other texts")
    elif not parts:
        place = moved[0]
        parts.append(
            f"the same documents in another order, the first of them at place {place + 1}:"
            f" {in_one_line(now[place][0])}, where {in_one_line(before[place][0])} was"
        )
    return ", ".join(parts)


def _documents(split: Split) -> Documents:
    hashes = split.doc_hashes
    if hashes is None:  # of a dataset that knows no hashes
        texts = [f"{size} bytes" for size in split.doc_bytes.tolist()]
    else:
        texts = [content.tobytes().hex() for content in hashes]
    return list(zip(split.names(), texts))


def _read(run_dir: Path) -> dict:
    """What `keep` wrote; {} where there is none that can be read."""
    try:
        with open_regular(run_dir / FILE) as file:
            kept = parse_json(file.read())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("splits"), dict) else {}
