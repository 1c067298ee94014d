"""Good inputs of every command, which the fuzzer damages copies of."""

import shutil
from pathlib import Path

from .server import Command, run

WEIGHTS = "export/model.safetensors"
OF_TEXTS = ("--input", "texts", "--test_every", "4", "--vocab_size", "300", "--workers", "1")


def make(folder: Path) -> None:
    """Make all of it in an empty folder: a dataset, a run with its checkpoints, its consolidated
    weights, files of texts, a dataset that is half prepared, a sweep's folder, the seed project's
    files."""
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


def make_hf(folder: Path) -> None:
    """Make, beside it, what transformers opens: the package is slow to import."""
    _run(folder, "tools/export_hf.py", "export", "hf")


def make_entry(folder: Path) -> None:
    """Make a referee's entry that is trained, the dataset that it is trained on, and its pack."""
    _run(folder, "tests/fuzz/first_entry.py")
    _run(folder, "tools/referee.py", "pack", "entry", "--out", "pack")


def _run(folder: Path, tool: str, *argv: str, code: int = 0) -> None:
    outcome = run(Command(tool, list(argv)), folder, seconds=300)
    assert outcome.code == code, (outcome.stdout + outcome.stderr).decode()
