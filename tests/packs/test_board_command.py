"""referee.py board on packs of trained entries."""

import json
import shutil
import sys

import pytest

pytest.importorskip("torch")

from conftest import load_command

from gpt.errors import UserError

referee = load_command("referee")


def board(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["referee.py", "board", *map(str, words)])
    referee.main()


def test_a_pack_becomes_a_table_and_a_page(monkeypatch, capsys, pack_of_entry, tmp_path):
    pack, _ = pack_of_entry
    shutil.copytree(pack, tmp_path / "packs" / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    board(monkeypatch, "packs/mine", "--markdown", "board.md", "--html", "site/board.html")
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "board.md").read_text()
    sealed = json.loads((pack / "pack.json").read_text())
    (row,) = [line for line in printed.splitlines() if line.endswith("| [mine](packs/mine) |")][:1]
    assert f"| {sealed['judgement']['verdict']} |" in row
    # few seeds have no rank
    assert row.startswith(f"| - | {sealed['entry']} ")
    assert 'href="../packs/mine"' in (tmp_path / "site" / "board.html").read_text()


def test_a_pack_that_was_changed_is_named_and_left_out(
    monkeypatch, capsys, pack_of_entry, packed, tmp_path
):
    log = packed / "runs" / "contender-seed0" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": ', '"loss": 0', 1))
    board(monkeypatch, pack_of_entry[0], packed)
    printed = capsys.readouterr().out
    assert printed.count("notice: left out: ") == 1
    assert "runs/contender-seed0/metrics.jsonl" in printed.splitlines()[-1]
    with pytest.raises(UserError, match="no pack can be used; left out: .*metrics.jsonl"):
        board(monkeypatch, packed)


def test_no_work_is_done_for_a_table_that_cannot_be_written(monkeypatch, packed, tmp_path):
    with pytest.raises(UserError, match="--html"):
        board(monkeypatch, packed, "--html", tmp_path / "nowhere" / "board.html")
