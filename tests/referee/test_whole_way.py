"""From a claim to a board, on the sample: a true improvement is found, a renamed baseline is none,
a worse model is worse, and a pack stands up in a clean checkout."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
CLASS = ROOT / "docs" / "minute.json"  # of the guide
MINUTE = 60
REPLAYED = "10"  # steps of each run
CONTENDERS = {
    "cooldown": ["--scheduler.type", "LinearCooldownLR"],
    "renamed": ["--model_file", "modern"],
    "tied": ["--model_file", "modern", "--model_options.tied", "true"],
}


@pytest.fixture(scope="module")
def clean_checkout(tmp_path_factory):
    """The project's files alone, in a folder of their own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git does not look at this folder: {listed.stderr}")
    folder = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder


def test_the_whole_way(run_command, clean_checkout, sample, tmp_path):
    def referee(*words, checkout=ROOT):
        command = [sys.executable, checkout / "tools" / "referee.py", *words]
        done = run_command(command, tmp_path, timeout=15 * MINUTE, PYTHONPATH=str(checkout))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tree = json.loads(CLASS.read_text())
    tree["gpt"]["data_root"] = str(sample)
    class_file = tmp_path / CLASS.name
    class_file.write_text(json.dumps(tree))
    verdicts = {}
    for name, options in CONTENDERS.items():
        referee("new", name, "--from", class_file, "--over", "tokens", *options)
        assert "FAIL" not in referee("check", name, "--skip_runs")
        referee("run", name)
        referee("judge", name, "--json", f"{name}.json")
        verdicts[name] = json.loads((tmp_path / f"{name}.json").read_text())
        referee("pack", name, "--out", f"packs/{name}")
    assert verdicts["cooldown"]["verdict"] == "better"
    assert verdicts["cooldown"]["paired"]
    assert verdicts["renamed"]["verdict"] in ("equivalent", "not shown")
    assert verdicts["tied"]["verdict"] == "worse"

    packs = [f"packs/{name}" for name in CONTENDERS]
    words = ["verify", packs[0], "--data_root", sample, "--replay", REPLAYED]
    assert "FAIL" not in referee(*words, checkout=clean_checkout)
    rows = referee("board", *packs, "--html", "board.html").splitlines()
    ranks = {
        cells[2].strip(): cells[1].strip()
        for cells in (row.split("|") for row in rows)
        if len(cells) > 10
    }
    assert ranks["cooldown"] == "1"
    assert ranks["renamed"] == ranks["minute (baseline)"] == "2"
    assert ranks["tied"] == "4"
    assert (tmp_path / "board.html").stat().st_size > 1000
