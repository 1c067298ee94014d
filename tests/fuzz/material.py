"""Good inputs of every command, which the fuzzer damages copies of."""

import shutil
from pathlib import Path

from gpt.referee.entry import SIDES, read
from gpt.referee.measurement import Measurement, Speed, configuration, fingerprint

from .server import Command, run

WEIGHTS = "export/model.safetensors"
OF_TEXTS = ("--input", "texts", "--test_every", "4", "--vocab_size", "300", "--workers", "1")


def make(folder: Path) -> None:
    """Make all of it in an empty folder: a dataset, a run with its checkpoints, its consolidated
    weights, files of texts, a dataset that is half prepared, a sweep's folder, the seed project's
    files, an entry that is measured."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    _run(folder, "tests/fuzz/first_inputs.py")
    _run(folder, "gpt/train.py", "--ds_config", "n.json", "--run_dir", "runs/a")
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    _run(folder, "tools/zero_to_fp32.py", "runs/a/checkpoints", "export")
    _run(folder, "gpt/eval.py", "--checkpoint_file", WEIGHTS, "--join", "runs/a")
    for shard in ("1/2", "2/2"):
        _run(folder, "tools/prepare_data.py", *OF_TEXTS, "--out", "half", "--shard", shard)
    sweep = ("--classes", "n.json", "--out", "swept", "--launcher", "false")
    _run(folder, "tools/sweep.py", *sweep, code=1)
    _run(folder, "tools/referee.py", "new", "measured", "--from", "n.json", "--max_lr", "1e-3")
    _measure(folder / "measured")


def _measure(folder: Path) -> None:
    """Keep a measurement that nothing took, by which both sides are equally fast."""
    entry = read(folder)
    speeds = {}
    for side in SIDES:
        config = configuration(entry, side)
        batch = config.batch
        tokens = batch.train_batch_size * config.model.seq_len
        facts = (fingerprint(entry, side, config), "the GPT", None, config.precision, "torch")
        turns = ((0.25, 0.25),) * 4
        speeds[side] = Speed(*facts, batch.micro_size, tokens, 1000, 6000, turns)
    published = configuration(entry, SIDES[0]).options.tokens_per_second
    time = "2026-01-01T00:00:00+00:00"
    machine = {"device": "none", "load_before": 0.0, "load_during": 0.0}
    measurement = Measurement(entry.declaration, time, speeds, None, published, True, machine)
    measurement.write(entry.measured)


def make_hf(folder: Path) -> None:
    """Make, beside it, what transformers opens: the package is slow to import."""
    _run(folder, "tools/export_hf.py", "export", "hf")


def make_pack(folder: Path) -> None:
    """Make an entry that is trained, the dataset that it is trained on, and its pack."""
    _run(folder, "tests/fuzz/trained_entry_here.py")
    _run(folder, "tools/referee.py", "pack", "trained", "--out", "pack")


def _run(folder: Path, tool: str, *argv: str, code: int = 0) -> None:
    outcome = run(Command(tool, list(argv)), folder, seconds=300)
    assert outcome.code == code, (outcome.stdout + outcome.stderr).decode()
