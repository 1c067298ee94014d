"""Many processes, kills, shards of many hosts, full disks: the dataset is always the same, or not
there."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from small_corpora import build, files_of, write_texts

from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.locking import FolderLock
from gpt.prepare import assemble, pipeline, units
from gpt.prepare import workers as workers_module
from gpt.prepare.documents import documents
from gpt.prepare.inputs import inputs_of_folder
from gpt.prepare.splits import Rule
from gpt.prepare.staging import Job
from gpt.prepare.texts import Reading
from gpt.prepare.units import units_of

RUN = Path(__file__).resolve().parents[2] / "tests" / "support" / "prepare_run.py"


@pytest.fixture(scope="module")
def place(sample, tmp_path_factory):
    """A folder with texts in `in`, a list of held-out names, and the dataset of one process in
    `expected`."""
    folder = tmp_path_factory.mktemp("scale")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(3000)]
    texts = {
        f"{i % 3}/{i}.txt": " ".join(rng.choices(words, k=rng.randrange(10, 2500)))
        for i in range(30)
    }
    rows = b"".join(
        json.dumps({"text": " ".join(rng.choices(words, k=90))}).encode() + b"\n" for _ in range(60)
    )
    write_texts(
        folder / "in", {**texts, "rows.jsonl": rows, "large.txt": "\n".join(texts.values()) * 3}
    )
    (folder / "held.txt").write_text("0/3.txt\nrows.jsonl:7\n")
    shutil.copy(sample / "tokenizer.model", folder)
    assert command(folder, "none", "expected", "--workers", 1).returncode == 0
    return folder


def command(place, fault, out, *options, wait=True):
    arguments = [
        "--input",
        "in",
        "--split_list",
        "test=held.txt",
        "--tokenizer",
        "tokenizer.model",
        "--out",
        out,
        *options,
    ]
    process = subprocess.Popen(
        [sys.executable, str(RUN), fault, *map(str, arguments)],
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    if not wait:
        return process
    stdout, stderr = process.communicate(timeout=240)
    require_none_left(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def require_none_left(session):
    for _ in range(600):
        left = [pid for pid in psutil.pids() if _session(pid) == session]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes are left: {left}")


def _session(pid):
    try:
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.Error):
        return None


def check_same(place, out):
    assert files_of(place / out) == files_of(place / "expected")
    assert not (place / f"{out}.preparing").exists()


def test_two_processes_make_the_same_bytes(place):
    done = command(place, "none", "two", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "in 2 process(es), cut into words" in done.stdout
    check_same(place, "two")


@pytest.mark.parametrize("fault, workers", [("units=3", 2), ("units=2", 1), ("packed", 1)])
def test_killed_and_gone_on_with(place, fault, workers):
    out = f"killed-{fault}"
    assert command(place, fault, out, "--workers", workers).returncode == -signal.SIGKILL
    assert not (place / out).exists()
    records = {
        path: path.stat().st_mtime_ns for path in (place / f"{out}.preparing").glob("*.jsonl")
    }
    again = command(place, "none", out, "--workers", 3 - workers)
    assert again.returncode == 0, again.stderr
    total = len(units_of(inputs_of_folder(place / "in")))
    assert (
        len(records) >= 2 and f"going on with {out}.preparing: {len(records)} of " in again.stdout
    ), total
    check_same(place, out)


def test_units_that_are_done_are_not_done_again(place):
    command(place, "units=3", "again", "--workers", 1)
    staging = place / "again.preparing"
    done = {path: path.stat().st_mtime_ns for path in staging.glob("[0-9]*")}
    assert (
        len(done) == 6
        and command(place, "units=2", "again", "--workers", 1).returncode == -signal.SIGKILL
    )
    later = {path: path.stat().st_mtime_ns for path in staging.glob("[0-9]*")}
    assert len(later) == 10 and done.items() <= later.items()
    shutil.rmtree(staging)


def test_a_lost_worker_is_told_and_the_same_command_goes_on(place):
    done = command(place, "worker=2", "lost", "--workers", 2)
    assert done.returncode == 1 and not (place / "lost").exists()
    assert (
        "a worker process ended with exit code -9, for want of memory perhaps: what is done is kept"
        in done.stderr
    )
    assert command(place, "none", "lost", "--workers", 2).returncode == 0
    check_same(place, "lost")


OTHERS = {
    "input files": lambda folder: (folder / "in" / "0" / "0.txt").write_text("changed"),
    "splits": lambda folder: (folder / "held.txt").write_text("0/0.txt\n"),
    "tokenizer": None,
    "rules for duplicates": None,
    "options of reading": None,
}


def work_of(folder):
    """What is done so far, without the lock, which every process marks as its own."""
    return {
        name: content
        for name, content in files_of(folder / "out.preparing").items()
        if name != ".lock"
    }


@pytest.mark.parametrize("what", OTHERS)
def test_other_work_is_not_mixed_in(place, tmp_path, what, sample):
    folder = tmp_path / "place"
    shutil.copytree(
        place,
        folder,
        ignore=shutil.ignore_patterns("expected", "*.preparing", "killed*", "two", "lost"),
    )
    assert command(folder, "units=2", "out", "--workers", 1).returncode == -signal.SIGKILL
    before = work_of(folder)
    (OTHERS[what] or (lambda folder: None))(folder)
    options = {
        "rules for duplicates": ["--duplicates", "drop"],
        "options of reading": ["--text_field", "body"],
    }.get(what, [])
    if what == "tokenizer":
        trained = pipeline.train_tokenizer(
            [next(documents(entry, Reading())) for entry in inputs_of_folder(folder / "in")],
            300,
        )
        (folder / "tokenizer.model").write_bytes(trained.model)
    done = command(folder, "none", "out", "--workers", 1, *options)
    assert done.returncode == 2 and not (folder / "out").exists()
    assert (
        done.stderr
        == f"error: out.preparing was begun with other {what}: finish it with the command that"
        " began it, or remove it to begin afresh\n"
    )
    assert work_of(folder) == before


def test_a_second_command_keeps_out(place):
    lock = FolderLock(place / "busy.preparing")
    done = command(place, "none", "busy")
    lock.release()
    assert done.returncode == 2
    assert (
        "another process prepares a dataset in busy.preparing: wait for it, or name another --out"
        in done.stderr
    )


def test_shards_merged_are_the_dataset_of_one_host(place, run_command):
    for i in (1, 2, 3):
        done = command(
            place, "units=1" if i == 2 else "none", "s", "--shard", f"{i}/3", "--workers", 1
        )
        assert done.returncode == (-signal.SIGKILL if i == 2 else 0), done.stderr
    tool = [sys.executable, RUN.parents[2] / "tools" / "prepare_data.py", "--out", "s", "--merge"]
    folders = [f"s.shard-{i}-of-3" for i in (1, 2, 3)]
    for given, message in (
        (folders[:2], "shard 3 of 3 is missing: give all folders to --merge"),
        (folders, "s.shard-2-of-3 is not done yet: run its command again until it says so"),
        ([*folders, folders[0]], "s.shard-1-of-3 are the same shard: give each once"),
        (["in"], "in holds no encoded texts (no readable plan.json)"),
    ):
        if given[-1] == folders[0]:
            shutil.copytree(place / folders[0], place / "copy")
            given = [*folders, "copy"]
            message = "copy are the same shard: give each once"
        done = run_command([*tool, *given], place)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert not (place / "s").exists()
    done = command(place, "none", "s", "--shard", "2/3", "--workers", 1)
    assert (
        done.returncode == 0
        and "s.shard-2-of-3 is done; when all 3 are: --merge s.shard-*-of-3 --out s" in done.stdout
    )
    tokens = place / folders[0] / "000000.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:2000] + bytes(2) + content[2002:])
    done = run_command([*tool, *folders], place)
    assert done.returncode == 2
    unit = f"{folders[0]}/000000"
    assert f"{unit}.tokens and {unit}.jsonl are not as they were written: remove" in done.stderr
    tokens.write_bytes(content)
    done = run_command([*tool, *folders], place)
    assert done.returncode == 0, done.stderr
    check_same(place, "s")


def test_a_folder_of_work_that_is_a_link(tmp_path, vocab):
    folder = write_texts(tmp_path / "in", {f"{i}.txt": f"{i}" for i in range(4)})
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out.preparing").symlink_to(tmp_path / "scratch")
    with pytest.raises(UserError, match="out.preparing is a link, .*: put --out itself on the oth"):
        build(folder, tmp_path / "out", vocab, test_every=2)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("reader", ["| head -1", "> /dev/full"])
def test_the_work_goes_on_when_nobody_reads_along(tmp_path, sample, reader):
    write_texts(tmp_path / "in", {f"{i}.txt": f"{i}" for i in range(4)})
    tool = RUN.parents[2] / "tools" / "prepare_data.py"
    options = f"--input in --test_every 2 --tokenizer {sample}/tokenizer.model --out out"
    command = f"set -o pipefail; {sys.executable} {tool} {options} {reader}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "out" / "manifest.json").exists()


def test_refused_bytes_may_be_skipped_without_doing_the_rest_again(place, tmp_path):
    folder = tmp_path / "place"
    shutil.copytree(place / "in", folder / "in")
    for name in ("held.txt", "tokenizer.model"):
        shutil.copy(place / name, folder)
    (folder / "in" / "2" / "bad.txt").write_bytes(b"sea \xff")
    done = command(folder, "none", "out", "--workers", 1)
    assert done.returncode == 2 and "in/2/bad.txt is not UTF-8 at byte 4" in done.stderr
    (folder / "in" / "notes.md").write_text("passed over")
    done = command(folder, "none", "out", "--workers", 1, "--bad_utf8", "skip")
    assert done.returncode == 0 and "going on with out.preparing" in done.stdout
    assert "train: left out 1 not UTF-8" in done.stdout


def test_no_room(place, tmp_path, monkeypatch):
    vocab = Vocab.load(place / "tokenizer.model")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(
        UserError,
        match=r"has 0.0001 GB free, and the dataset may need 0.00\d+ GB while it is made: make",
    ):
        build(place / "in", tmp_path / "out", vocab, test_every=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [units, assemble])
def test_a_disk_that_fills_up(module, place, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "sync" if module is units else "sync_all", full)
    vocab = Vocab.load(place / "tokenizer.model")
    with pytest.raises(
        UserError,
        match=(
            "no room is left on the disk of --out, where the work is kept too: make some, and the"
            " same"
        ),
    ):
        build(place / "in", tmp_path / "out", vocab, test_every=5)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists() and (tmp_path / "out.preparing").exists() == (
        module is assemble
    )
    build(place / "in", tmp_path / "out", vocab, test_every=5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_stands_in_the_way_of_a_worker_is_told(place):
    command(place, "units=1", "way", "--workers", 1)
    for number in range(1, 9):
        (place / "way.preparing" / f"{number:06d}.tokens").mkdir()
    done = command(place, "none", "way", "--workers", 2)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        ".tokens: Is a directory; make the path usable or give another one" in done.stderr
        or ".new: Is a directory" in done.stderr
    )
    shutil.rmtree(place / "way.preparing")


def test_more_shards_than_units(sample, tmp_path):
    vocab = Vocab.load(sample / "tokenizer.model")
    write_texts(tmp_path / "in" / "train", {"a.txt": "the whale"})
    job = Job(Rule())
    inputs = inputs_of_folder(tmp_path / "in" / "train", "train")
    for part in (1, 2):
        pipeline.prepare(
            inputs, tmp_path / "out", job, vocab, shard=(part, 2), say=lambda text: None
        )
    write_texts(tmp_path / "out.preparing", {"mine": "precious"})
    with pytest.raises(
        UserError, match="out.preparing is where the dataset would be made, and holds other files"
    ):
        pipeline.merge(
            sorted(tmp_path.glob("out.shard-*")), tmp_path / "out", say=lambda text: None
        )
    (tmp_path / "out.preparing" / "mine").unlink()
    pipeline.merge(sorted(tmp_path.glob("out.shard-*")), tmp_path / "out", say=lambda text: None)
    build(tmp_path / "in", tmp_path / "one", vocab)
    expected = files_of(tmp_path / "one")
    merged = files_of(tmp_path / "out")
    assert merged.pop("manifest.json") and expected.pop("manifest.json") and merged == expected


@pytest.mark.parametrize(
    "plain, progress",
    [(True, "1 of 4 MB of files done, ETA 0:00"), (False, "0 of 4 MB of files done, ETA unknown")],
)
def test_a_document_in_work_counts_where_its_file_is_its_text(monkeypatch, plain, progress):
    monkeypatch.setattr(workers_module, "SECONDS_BETWEEN_REPORTS", 0)
    lines = []
    workers_module.EncodingReport({0: 4_000_000}, plain, lines.append).advance(1_000_000)
    assert progress in lines[0] and lines[0].startswith("1 MB of text encoded")


def short_of_memory(task, report):
    raise MemoryError


def test_a_worker_that_is_short_of_memory_says_so_in_a_sentence():
    with pytest.raises(UserError, match="a worker process had not enough memory: give fewer"):
        list(workers_module.spread(short_of_memory, [1, 2], 2, lambda number: None))
