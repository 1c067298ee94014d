"""The command that measures both sides: its processes, its words, its refusals."""

import json
import sys

import pytest
from conftest import ROOT
from forked import fork_ranks
from measured import steps_of, write_entry, write_side

from gpt.config.resolve import resolve
from gpt.errors import UserError
from gpt.referee import measure, measured_file, turns
from gpt.referee.entry import BASELINE, CONTENDER

MACHINE = {"device": "a test", "load_during": 0.02, "versions": {"torch": "2"}}


class Processes:
    """In the place of in_child: turns that take as long as `seconds` says of a side's tree."""

    def __init__(self, seconds=lambda side, tree: 0.1, most=2, kernels=("torch", "torch")):
        self.seconds = seconds
        self.most = most  # engines in one process, for its memory
        self.kernels = dict(zip((BASELINE, CONTENDER), kernels))
        self.orders = []
        self.trees = []

    def __call__(self, module, task):
        assert module == "gpt.referee.turns"
        self.orders.append(task["order"])
        self.trees.append(task["sides"])
        if len(task["sides"]) > self.most:
            return {"status": "out of memory"}
        sides = {}
        for side, tree in task["sides"].items():
            resolve(tree, side)
            kernels = "torch" if tree["gpt"]["kernels"] == "torch" else self.kernels[side]
            facts = {"precision": "fp32", "parameters": 145_056, "flops_per_token": 473_088}
            sides[side] = {**facts, "kernels": kernels}
        rows = [[side, [self.seconds(side, task["sides"][side])] * 2] for side in task["order"]]
        return {"status": "ok", "sides": sides, "turns": rows, "machine": MACHINE}


@pytest.fixture
def measured(monkeypatch):
    """measured(entry, processes, rounds) -> the command's words."""
    before = {"load_average": [0.1, 0.1, 0.1], "load_before": 0.0, "gpu_processes": None}

    def run(entry, processes, rounds=4):
        monkeypatch.setattr(measure, "facts_before", lambda: before)
        monkeypatch.setattr(measure, "in_child", processes)
        return measure.measure_entry(entry.path, rounds)

    return run


def slower_contender(side, tree):
    """256 tokens in 0.128 s, the contender's in 0.16 s: 2,000 and 1,600 tokens/s."""
    return 0.16 if side == CONTENDER else 0.128


def test_both_sides_in_one_process(tmp_path, measured):
    baseline = steps_of(1000)
    baseline["gpt"]["tokens_per_second"] = 2200
    entry = write_entry(tmp_path / "e", "hours", baseline, steps_of(1000))
    processes = Processes(slower_contender)
    words = measured(entry, processes).splitlines()
    assert processes.orders == [[BASELINE, CONTENDER, CONTENDER, BASELINE] * 2]
    assert words[0] == "tiny on a test"
    assert words[2].split() == "baseline the GPT 145,056 0.473 torch 4 2,000 1,000 256,000".split()
    assert words[3].split() == "contender the GPT 145,056 0.473 torch 4 1,600 800 204,800".split()
    # 256,000 tokens at 2,200/s are 116.4 s, at 2,000/s 128 s
    assert words[4:] == [
        "throughput of the contender over the baseline's: 0.8000 (95% interval 0.8000 to 0.8000)",
        "the baseline trains at 2,000 tokens/s here, 9.1% below the 2,200 that its class was made"
        " for: the class stays 1.94 min of the reference, which are 2.13 min of this device",
        f"kept in {entry.measured}",
    ]
    kept = measured_file.read(entry)
    assert kept.together and kept.declaration == entry.declaration
    assert kept.machine["versions"] == {"torch": "2"} and kept.machine["load_before"] == 0


def test_a_null_entry_trains_as_many_tokens(tmp_path, measured):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    words = measured(entry, Processes())
    assert "1.0000 (95% interval 1.0000 to 1.0000), which holds 1: the two cannot be told" in words
    assert "no throughput in fp32 is published for the baseline's class: this device is" in words


def test_memory_for_one_engine_alone(tmp_path, measured):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    processes = Processes(slower_contender, most=1)
    words = measured(entry, processes, rounds=2)
    assert processes.orders[1:] == [[BASELINE], [CONTENDER], [CONTENDER], [BASELINE]]
    assert "0.8000 (95% interval 0.8000 to 0.8000)" in words
    assert "each turn was in a process of its own" in words
    assert not measured_file.read(entry).together


@pytest.mark.parametrize(
    "options", [{"zero_optimization": {"stage": 3}}, {"gpt": {"compile": "default"}}]
)
def test_engines_that_would_change_one_another(tmp_path, measured, options):
    entry = write_entry(tmp_path / "e", "tokens", contender=options)
    processes = Processes()
    measured(entry, processes, rounds=2)
    assert processes.orders == [[BASELINE], [CONTENDER], [CONTENDER], [BASELINE]]


def test_no_memory_for_one(tmp_path, measured):
    entry = write_entry(tmp_path / "e")
    with pytest.raises(UserError) as caught:
        measured(entry, Processes(most=0))
    assert str(caught.value) == (
        f"{entry.config_file(BASELINE)} takes more memory than there is on this device: give it a"
        " smaller train_micro_batch_size_per_gpu"
    )
    assert not entry.measured.exists()


def test_a_process_that_fails(tmp_path, measured):
    entry = write_entry(tmp_path / "e")
    with pytest.raises(UserError) as caught:
        measured(entry, lambda module, task: {"status": "failed: contender: no such module"})
    assert str(caught.value) == (
        f"{entry.path} could not be measured (failed: contender: no such module)"
    )


def test_kernels_are_told_apart_from_the_method(tmp_path, measured):
    """A baseline that takes 0.1 s a step by its kernels and 0.125 s without, and a model file that
    has none and takes 0.125 s."""

    def seconds(side, tree):
        is_fused = side == BASELINE and tree["gpt"]["kernels"] == "auto"
        return 0.1 if is_fused else 0.125

    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "own.py").write_text("import torch\n")
    entry = write_entry(
        tmp_path / "e", "hours", steps_of(1000), {**steps_of(1000), "gpt": {"model_file": "own.py"}}
    )
    processes = Processes(seconds, kernels=("triton", "triton"))
    words = measured(entry, processes)
    assert len(processes.orders) == 2
    assert "baseline's: 0.8000 (95% interval" in words
    assert (
        "with both sides on plain torch it is 1.0000 (95% interval 1.0000 to 1.0000): that is the"
        " method's, and the rest Triton's kernels, which bring the baseline 1.2500 times as much"
    ) in words
    assert " 800 " in words.splitlines()[3]
    kept = measured_file.read(entry)
    assert kept.method_ratio.value == pytest.approx(1)

    (tmp_path / "e" / "own.py").write_text("from gpt.kernels.linear import linear\n")
    again = Processes(seconds, kernels=("triton", "triton"))
    assert "with both sides on plain torch" not in measured(entry, again)
    assert len(again.orders) == 1


@pytest.mark.parametrize("over", ["hours", "tokens"])
def test_measuring_again_after_training_began(over, tmp_path, measured):
    """What is measured is among what stands before training, whatever equal compute is."""
    entry = write_entry(tmp_path / "e", over, steps_of(1000), steps_of(1000))
    measured(entry, Processes())
    measured(entry, Processes())
    entry.starts.write_text("{}\n")
    before = entry.measured.read_text()
    with pytest.raises(UserError) as caught:
        measured(entry, Processes(slower_contender))
    assert str(caught.value) == (
        f"{entry.path} has been trained already ({entry.starts}), and what is measured stands"
        " before training: to begin anew, move starts.jsonl, tuning and runs away"
    )
    assert entry.measured.read_text() == before


def test_measurements_that_others_replaced_are_told(tmp_path, measured):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    assert "before" not in measured(entry, Processes(slower_contender))
    assert "measured once before: 0.8000" in measured(entry, Processes()).splitlines()
    first_declaration = entry.declaration[:12]
    write_side(entry, CONTENDER, **steps_of(2000))
    words = measured(entry, Processes(slower_contender)).splitlines()
    assert "measured 2 times before: 0.8000, 1.0000" in words
    kept = measured_file.read(entry)
    assert [round(earlier.value, 9) for earlier in kept.earlier] == [0.8, 1]
    assert {earlier.declaration for earlier in kept.earlier} == {first_declaration}
    assert kept.earlier[0].device == "a test"
    for _ in range(4):
        words = measured(entry, Processes()).splitlines()
    assert "measured 6 times before, the last 5: 1.0000, 0.8000, 1.0000, 1.0000, 1.0000" in words


def test_more_measurements_than_are_kept(tmp_path, measured, monkeypatch):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    monkeypatch.setattr(measure, "MOST_EARLIER", 1)
    measured(entry, Processes())
    measured(entry, Processes())
    with pytest.raises(UserError, match="holds 2 measurements, the most that are kept"):
        measured(entry, None)


def test_a_pack_whose_code_would_be_run(tmp_path, measured):
    entry = write_entry(tmp_path / "e")
    (entry.path / "pack.json").write_text("{}")
    with pytest.raises(UserError, match="is a pack, which is sealed: use the entry that it was"):
        measured(entry, None)


@pytest.mark.parametrize("rounds", [1, 0, -3, 10_001])
def test_too_few_rounds(tmp_path, measured, rounds):
    entry = write_entry(tmp_path / "e")
    with pytest.raises(UserError) as caught:
        measured(entry, Processes(), rounds)
    assert str(caught.value) == (
        f"--rounds {rounds}: an interval needs 2 turns or more of each side: give 2 to 10,000"
    )


def test_a_schedule_that_cannot_follow_is_told_before_anything_is_measured(tmp_path, measured):
    options = {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}}
    entry = write_entry(tmp_path / "e", contender=options)
    with pytest.raises(UserError, match="has no schedule of the trainer's own"):
        measured(entry, None)


def test_a_measurement_that_is_too_uncertain_is_kept_and_told(tmp_path, measured):
    entry = write_entry(tmp_path / "e", "hours", steps_of(1000), steps_of(1000))
    seconds = iter([0.1, 0.1, 0.12, 0.1, 0.1, 0.09, 0.13, 0.1])
    with pytest.raises(UserError, match="equal compute over hours needs 3%"):
        measured(entry, Processes(lambda side, tree: next(seconds)))
    assert measured_file.read(entry).ratio.uncertainty > 0.03


def test_over_flops_the_throughput_is_told_for_information(tmp_path, measured):
    entry = write_entry(tmp_path / "e", "flops", steps_of(1000), steps_of(1000))
    words = measured(entry, Processes(slower_contender))
    assert "the steps are equal over flops, whatever the throughput" in words
    assert words.splitlines()[3].split()[-2:] == ["1,000", "256,000"]


def test_two_real_engines_in_one_process_group(tmp_path, monkeypatch, measured):
    """ZeRO 1 and ZeRO 2, whose steps are DeepSpeed's own."""
    import gpt.engine.boundary  # noqa: F401  (once, for all that is forked)

    monkeypatch.setattr(turns, "TURN_SECONDS", 0.02)
    entry = write_entry(tmp_path / "e", "tokens", contender={"zero_optimization": {"stage": 2}})

    def forked(module, task):
        def work():
            (tmp_path / "result.json").write_text(json.dumps(turns.measure(task)))

        [(code, _)] = fork_ranks(1, work)
        assert code == 0
        return json.loads((tmp_path / "result.json").read_text())

    words = measured(entry, forked, rounds=3)
    assert "throughput of the contender over the baseline's: " in words
    kept = measured_file.read(entry)
    assert kept.together and kept.machine["device"].startswith("cpu (")
    for speed in kept.speeds.values():
        assert len(speed.turns) == 3 and all(len(turn) >= 2 for turn in speed.turns)
        assert (speed.parameters, speed.flops_per_token) == (145_056, 473_088)
        assert (speed.kernels, speed.precision, speed.micro_batch) == ("torch", "fp32", 4)
    assert 0 <= kept.machine["load_during"] <= 1


@pytest.mark.slow
def test_the_command_itself(tmp_path, run_command):
    entry = write_entry(tmp_path / "e", "tokens", contender={"gpt": {"mlp_dim": 128}})
    command = [sys.executable, ROOT / "tools" / "referee.py", "measure", "e", "--rounds", 2]
    done = run_command(command, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "throughput of the contender over the baseline's: " in done.stdout
    assert done.stdout.endswith("kept in e/measured.json\n")
    assert measured_file.read(entry).together
