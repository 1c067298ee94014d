"""Runs of an entry: trained in turns, evaluated, on record, gone on with."""

import pytest

pytest.importorskip("torch")

from entry_runs import in_this_process, lines_of, new_entry, small_dataset

from gpt.errors import UserError
from gpt.referee import runs


def test_a(tmp_path, one_thread, capsys):
    data = small_dataset(tmp_path)
    entry = new_entry(tmp_path, data, "--max_lr", 0.1)
    with in_this_process():
        runs.train(entry.path, None, None)
    print(capsys.readouterr().out)
    assert 0
