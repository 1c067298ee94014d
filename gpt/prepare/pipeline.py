"""Texts to a dataset: the plan, the encoding on all cores, going on after a kill, shards of many
hosts.

Work is cut into units of neighbouring input files. A unit is encoded into a folder beside the
dataset and is done when its records are there, so nothing is done twice, and neither the number of
processes nor of hosts changes a byte. When all are done, the documents are packed in their final
order (gpt/prepare/assemble.py), and the dataset appears by one rename.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import free_space, require_new_folder, sync, when_full
from gpt.prepare.assemble import assemble
from gpt.prepare.cuts import cut
from gpt.prepare.documents import Input, holds_rows, kind_of
from gpt.prepare.encode import Encoder
from gpt.prepare.packing import PACKINGS, packing_of
from gpt.prepare.splits import Rule, SameName
from gpt.prepare.staging import (
    MAKE_ROOM,
    NO_ROOM,
    PACKED,
    PLAN,
    Job,
    Plan,
    Staging,
    clear,
    lock_of,
    remove,
)
from gpt.prepare.texts import NotUTF8, Reading
from gpt.prepare.units import Unit, UnitEncoder, place_of_unit, units_of
from gpt.prepare.vocab_training import train_tokenizer, training_documents
from gpt.prepare.workers import EncodingReport, spread

# Bytes of text to one of a .parquet file, at most as a rule.
PARQUET_EXPANSION = 3

# At least, as a rule: the disk is looked at before the text is known.
BYTES_PER_TOKEN = 2.5

# Documents that a message names after the first.
SHOWN = 3

Say = Callable[[str], object]


@when_full(NO_ROOM, MAKE_ROOM)
def prepare(
    inputs: Sequence[Input],
    out: Path | str,
    job: Job,
    tokenizer: Vocab | int,
    workers: int = 1,
    shard: tuple[int, int] = (1, 1),
    say: Say = print,
) -> None:
    """Make the dataset folder `out`, which must not exist yet; or, of `shard` (i, n), the i-th of n
    parts of its units.

    tokenizer: a Vocab, or the number of ids of one to train on the split `train`. The same call
    goes on with what an earlier one has done. Raises UserError.
    """
    out = Path(out)
    part, parts = shard
    require_new_folder(out)
    inputs = cut(inputs, job.reading.cut_documents)
    folder = _folder_of_work(out, shard)
    _require_splits(inputs, job.rule)
    vocab_size = tokenizer.size if isinstance(tokenizer, Vocab) else tokenizer
    _require_room(inputs, parts, vocab_size, folder)
    units = units_of(inputs)
    staging = Staging(folder, Plan.of(inputs, units, job, tokenizer, shard))

    def make_tokenizer() -> Vocab:
        if isinstance(tokenizer, Vocab):
            return tokenizer
        documents = training_documents(inputs, job.rule, job.reading, say)
        return train_tokenizer(documents, tokenizer)

    keep = parts > 1
    try:
        vocab = staging.tokenizer(make_tokenizer)
        own_units = list(enumerate(units))[part - 1 :: parts]
        _encode(staging, own_units, job.reading, vocab, workers, say)
        if parts > 1:
            say(
                f"{folder} is done; when all {parts} are: --merge {out}.shard-*-of-{parts} --out"
                f" {out}"
            )
            return
        places = [place_of_unit(folder, number) for number, _ in own_units]
        _publish(places, folder / PACKED, out, vocab, job, say)
    except SameName:
        keep = False  # whatever mends it changes the plan
        raise
    except BaseException:
        keep = bool(staging.done())  # for the next time
        raise
    finally:
        staging.release(keep)


def _folder_of_work(out: Path, shard: tuple[int, int] = (1, 1)) -> Path:
    part, parts = shard
    if parts > 1:
        return out.with_name(f"{out.name}.shard-{part}-of-{parts}")
    return out.with_name(f"{out.name}.preparing")


def _require_splits(inputs: Sequence[Input], rule: Rule) -> None:
    """Raise UserError where the documents cannot be shared out, as far as their names are known
    before they are read."""
    if not any(holds_rows(entry) for entry in inputs):
        rule.share_out([entry.name for entry in inputs], [entry.split for entry in inputs])


def _require_room(inputs: Sequence[Input], parts: int, vocab_size: int, folder: Path) -> None:
    """Raise UserError where the disk has no room for the units and, beside them, the dataset."""
    text = sum(entry.size * _expansion(entry) for entry in inputs)
    item_size = np.dtype(manifests.token_dtype(vocab_size)).itemsize
    needed = int(2 * text / parts / BYTES_PER_TOKEN * item_size)
    needed -= sum(path.stat().st_size for path in folder.glob("[0-9]*.tokens"))  # done before
    free, place = free_space(folder)
    if needed > free:
        raise UserError(
            f"{place} has {free / 1e9:.3g} GB free, and the dataset may need {needed / 1e9:.3g}"
            " GB while it is made",
            mend="make room, or put --out on another disk",
        )


def _expansion(entry: Input) -> int:
    """Bytes of text to one on disk, at most as a rule."""
    if not isinstance(entry.source, Path):
        return 1
    if kind_of(entry.source) == ".parquet":
        return PARQUET_EXPANSION
    return PACKINGS.get(packing_of(entry.source), 1)


def _encode(
    staging: Staging,
    units: Sequence[Unit],
    reading: Reading,
    vocab: Vocab,
    workers: int,
    say: Say,
) -> None:
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
    workers = min(workers, len(todo))
    inputs = [entry for _, inputs_of_unit in todo for entry in inputs_of_unit]
    _announce_encoding(inputs, workers, Encoder(vocab), say)
    sizes = {number: sum(entry.size for entry in unit) for number, unit in todo}
    plain = not any(holds_rows(entry) or _expansion(entry) > 1 for entry in inputs)
    report = EncodingReport(sizes, plain, say)
    bad: dict[int, list[NotUTF8]] = {}
    encode_unit = UnitEncoder(staging.folder, reading, vocab.model)
    for number, bad_of_unit in spread(encode_unit, todo, workers, report.advance):
        report.finish(number)
        if bad_of_unit:
            bad[number] = bad_of_unit
    if bad:
        raise _not_utf8([error for number in sorted(bad) for error in bad[number]])


def _announce_encoding(inputs: Sequence[Input], workers: int, encoder: Encoder, say: Say) -> None:
    files = len({entry.source for entry in inputs})
    line = f"encoding {files:,} files in {workers} process(es), cut into {encoder.unit}"
    if encoder.reason:
        line += f" ({encoder.reason})"
    say(line)


def _not_utf8(errors: Sequence[NotUTF8]) -> UserError:
    """The first document's mistake, and which others have it too."""
    first, *others = errors
    if not others:
        return first
    shown = "; ".join(error.document for error in others[:SHOWN])
    return UserError(
        first.what,
        mend=f"{first.mend} ({len(errors):,} documents are alike, the next: {shown})",
    )


def _publish(
    units: Sequence[Path], building: Path, out: Path, vocab: Vocab, job: Job, say: Say
) -> None:
    """Pack the units into `building` and rename it to `out`."""
    remove(building)
    needed = sum(unit.with_suffix(".tokens").stat().st_size for unit in units)
    free, place = free_space(building)
    if needed > free:
        raise UserError(
            f"{place} has {free / 1e9:.3g} GB free, and the packed dataset needs"
            f" {needed / 1e9:.3g} GB",
            mend="make room, and the same command goes on",
        )
    assemble(units, vocab, job, building, say)
    os.rename(building, out)
    sync(out.parent)


@when_full(NO_ROOM, MAKE_ROOM)
def merge(folders: Sequence[Path | str], out: Path | str, say: Say = print) -> None:
    """Make the dataset `out` of the folders that `prepare` left of all shards."""
    out = Path(out)
    shards = [Path(folder) for folder in folders]
    require_new_folder(out)
    plans = {folder: Plan.read(folder) for folder in shards}
    units = _units_of_shards(plans)
    vocab = _vocab_of_shards(shards)
    building = _folder_of_work(out)
    if (building / PLAN).exists():
        raise UserError(
            f"{building} belongs to another command", mend="finish that one, or remove it"
        )
    lock = lock_of(building)
    try:
        _publish(units, building / PACKED, out, vocab, plans[shards[0]].job(), say)
    finally:
        clear(building)
        lock.release()
    say(f"the shards' folders are no longer needed: {', '.join(map(str, shards))}")


def _units_of_shards(plans: dict[Path, Plan]) -> list[Path]:
    """Places of the units of all shards, in order. Raises UserError where the folders are not all
    shards of one dataset, each once and done."""
    first_folder, first = next(iter(plans.items()))
    _, parts = first.shard
    folder_of = {plan.shard[0]: folder for folder, plan in plans.items()}
    for folder, plan in plans.items():
        part, parts_of_plan = plan.shard
        differences = []
        for name in plan.differences(first):
            if name not in ("shard", "state", "provenance"):
                differences.append(name)
        if parts_of_plan != parts:
            differences.append("number of shards")
        if differences:
            raise UserError(
                f"{folder} and {first_folder} are of different datasets (by {differences[0]})",
                mend="give the shards of one",
            )
        if folder_of[part] != folder:
            raise UserError(
                f"{folder} and {folder_of[part]} are the same shard", mend="give each once"
            )
    missing = [str(part) for part in range(1, parts + 1) if part not in folder_of]
    if missing:
        raise UserError(
            f"shard {', '.join(missing)} of {parts} is missing", mend="give all folders to --merge"
        )
    units = []
    for number in range(first.units):
        unit = place_of_unit(folder_of[number % parts + 1], number)
        if not unit.with_suffix(".jsonl").exists():
            raise UserError(
                f"{unit.parent} is not done yet", mend="run its command again until it says so"
            )
        units.append(unit)
    return units


def _vocab_of_shards(folders: Sequence[Path]) -> Vocab:
    vocabs = [Vocab.load(folder / manifests.TOKENIZER) for folder in folders]
    for folder, vocab in zip(folders, vocabs):
        if vocab.model != vocabs[0].model:
            raise UserError(
                f"{folder} and {folders[0]} trained different tokenizers",
                mend="give all shards the same --tokenizer",
            )
    return vocabs[0]
