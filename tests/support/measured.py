"""Entries of tiny runs, and measurements of them that were made up."""

import json

from conftest import tiny_run

from gpt.referee.entry import BASELINE, CONTENDER, HOURS, SIDES, Claim, Entry, Tuning
from gpt.referee.measurement import Measurement, Speed, configuration, fingerprint

DECAY = {"type": "LanguiniCosineLR", "params": {"max_lr": 3e-3, "warmup_steps": 2}}


def steps_of(count):
    """Options of `tiny_run` by which a run has so many steps."""
    scheduler = {**DECAY, "params": {**DECAY["params"], "decay_steps": count}}
    return {"scheduler": scheduler, "gpt": {"max_train_steps": count}}


def write_entry(folder, over=HOURS, baseline=(), contender=(), direction="better"):
    """An entry of `tiny_run(**options)` of both sides, of 256 tokens a step."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = Claim("tiny", "tiny", over, direction)
    entry = Entry(folder, "tiny", "a test", claim, (0, 1), Tuning((1.0,), 1000))
    entry.write()
    for side, options in ((BASELINE, baseline), (CONTENDER, contender)):
        write_side(entry, side, **dict(options))
    return entry


def write_side(entry, side, **options):
    entry.config_file(side).write_text(json.dumps(tiny_run(**options)))


def measurement_of(entry, rates, published=None, machine=(), without_kernels=None):
    """rates: {side: tokens per second of each turn}, of one step each."""
    return Measurement(
        entry.declaration,
        "2026-01-01T00:00:00+00:00",
        speeds_of(entry, rates),
        None if without_kernels is None else speeds_of(entry, without_kernels),
        published,
        True,
        {"device": "a test", **dict(machine)},
    )


def speeds_of(entry, rates):
    speeds = {}
    for side in SIDES:
        config = configuration(entry, side)
        tokens = config.batch.train_batch_size * config.model.seq_len
        speeds[side] = Speed(
            fingerprint(entry, side, config),
            "the GPT",
            config.model_digest,
            config.precision,
            "torch",
            config.batch.micro_size,
            tokens,
            145_056,
            473_088,
            tuple((tokens / rate,) for rate in rates[side]),
        )
    return speeds
