"""Texts to a dataset: the plan, the encoding on all cores, going on after a kill, shards of many
hosts, the sample.

Work is cut into units of neighbouring input files. A unit is encoded into a folder beside the
dataset and is done when its records are there, so nothing is done twice, and neither the number of
processes nor of hosts changes a byte. When all are done, the documents are packed in their final
order (gpt/prepare/assemble.py), and the dataset appears by one rename.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from gpt.data import manifests
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.files import free_space, require_new_folder, sync, when_full
from gpt.prepare.assemble import assemble
from gpt.prepare.documents import Reading, holds_rows, kind_of
from gpt.prepare.encode import Encoder
from gpt.prepare.splits import Rule
from gpt.prepare.staging import NO_ROOM, PACKED, PLAN, Job, Staging, lock_of, make_plan, read_plan
from gpt.prepare.units import UnitEncoder, units_of
from gpt.prepare.vocab_training import train_tokenizer, training_documents
from gpt.prepare.workers import Progress, spread

# bytes of text to one on disk, at most as a rule
EXPANSION = {".jsonl.gz": 3, ".jsonl.zst": 4, ".parquet": 3}
BYTES_PER_TOKEN = 2.5  # at least, as a rule: the disk is looked at before the text is known


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
    vocabs = [Vocab.load(folder / manifests.TOKENIZER) for folder in folders]
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
    lock = lock_of(building)
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
        2 * text / parts / BYTES_PER_TOKEN * np.dtype(manifests.token_dtype(vocab_size)).itemsize
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
