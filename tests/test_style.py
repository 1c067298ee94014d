"""The formatter, the linter and the type checker find nothing; their settings stand in
pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest
from without_torch import needs_torch

ROOT = Path(__file__).resolve().parents[1]
MOST_HAND_SET_TABLES = 10


@pytest.mark.parametrize("check", [("format", "--check"), ("check",)], ids=lambda words: words[0])
def test_ruff_finds_nothing(check):
    command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_torch
def test_mypy_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hardly_any_line_is_set_by_hand():
    sources = [path for top in ("gpt", "tools", "tests") for path in (ROOT / top).rglob("*.py")]
    sources.remove(Path(__file__).resolve())
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert "# fmt: skip" not in text
    assert text.count("# fmt: off") <= MOST_HAND_SET_TABLES
