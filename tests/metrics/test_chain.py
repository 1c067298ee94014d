"""Lines of metrics.jsonl that training did not write, or that somebody took away, are noticed."""

import hashlib
import json
from types import SimpleNamespace

import pytest
from plain_run import PlainEngine, train
from synthetic_runs import config_yaml

from gpt.errors import SilentError, UserError
from gpt.metrics import chain
from gpt.metrics.runs import read_run, read_runs
from gpt.metrics.sinks import Metrics

CONFIG = SimpleNamespace(options=SimpleNamespace(logger_type="none"))
STEPS = 5


def write(folder, steps):
    """Have the sink write a line of each step."""
    metrics = Metrics(active=True)
    metrics.open(folder, CONFIG, {}, kept=None)
    for step in steps:
        metrics.write({"event": "train", "step": step, "loss": 8.0 / step})
    metrics.close()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    config_yaml(folder)
    write(folder, range(1, STEPS + 1))
    return folder


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


def steps_of(run):
    return [event["step"] for event in read_run(run).curve("train")]


def chains_by_hand(lines, before):
    """The chains that lines of text should have, by their definition."""
    for line in lines:
        body, _, _ = line.rpartition(', "chain": ')
        before = hashlib.sha256((before + body).encode()).hexdigest()[:16]
        yield before


def test_a_line_ends_with_a_hash_of_itself_and_the_line_before_it(run):
    lines = lines_of(run)
    nothing = hashlib.sha256().hexdigest()[:16]
    chains = [json.loads(line)["chain"] for line in lines]
    assert chains == list(chains_by_hand(lines, nothing))
    assert list(json.loads(lines[0]))[-1] == "chain"
    assert chain.head(run / "metrics.jsonl") == chains[-1]
    assert chain.first_break(run / "metrics.jsonl") is None
    # readers of a run know its numbers alone
    assert "chain" not in read_run(run).curve("train")[0]


def without_chain(line):
    event = json.loads(line)
    del event["chain"]
    return json.dumps(event) + "\n"


def edited(line):
    return line.replace('"loss": ', '"loss": 1')


# {what was done: (the lines then, of those that training wrote; number of the line that tells so)}
FORGERIES = {
    "a number that was edited": (lambda a: [*a[:2], edited(a[2]), *a[3:]], 3),
    "the first line edited": (lambda a: [edited(a[0]), *a[1:]], 1),
    "the last line edited": (lambda a: [*a[:-1], edited(a[-1])], 5),
    "the last line edited, its end cut off": (lambda a: [*a[:-1], edited(a[-1])[:-1]], 5),
    "a line removed": (lambda a: [*a[:2], *a[3:]], 3),
    "the first line removed": (lambda a: a[1:], 1),
    "lines that changed places": (lambda a: [a[0], a[2], a[1], *a[3:]], 2),
    "a line twice": (lambda a: [*a[:2], a[1], *a[2:]], 3),
    "a line added by hand": (lambda a: [*a, without_chain(a[-1])], 6),
    "a line without its chain": (lambda a: [*a[:3], without_chain(a[3]), *a[4:]], 4),
    "a line set anew": (lambda a: [*a[:3], a[3].replace(', "chain', ',"chain'), *a[4:]], 4),
    "lines of another run behind": (lambda a: [*a, *a], 6),
    "an invented chain": (lambda a: [*a[:4], a[4][:-19] + "0" * 16 + '"}\n'], 5),
    "an empty line, and then a forged one": (lambda a: [*a[:2], "\n", edited(a[2]), *a[3:]], 4),
    "the first lines without a chain": (lambda a: [*map(without_chain, a[:2]), *a[2:]], 3),
    "garbage, and then a forged one": (lambda a: [*a[:2], "x\n", edited(a[2]), *a[3:]], 4),
    "garbage, and then the first forged": (lambda a: ["x\n", edited(a[0]), *a[1:]], 2),
    "garbage, and a line removed": (lambda a: [*a[:2], "x\n", *a[3:]], 4),
    "garbage with the chain of a line that is gone": (
        lambda a: [*a[:2], "x" + a[2][-30:], *a[3:]],
        4,
    ),
}
# where no line may be empty, and none without a chain
STRICT = {
    "an empty line, and then a forged one": 3,
    "the first lines without a chain": 1,
    "garbage, and then a forged one": 3,
    "garbage, and then the first forged": 1,
    "garbage, and a line removed": 3,
    "garbage with the chain of a line that is gone": 3,
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_run_whose_lines_are_not_as_written_is_left_out(what, run, tmp_path):
    alter, number = FORGERIES[what]
    (run / "metrics.jsonl").write_text("".join(alter(lines_of(run))))
    problem = "does not follow from the line before it: a line was changed, added or removed"
    if number == 1:
        problem = "is not the first line that training wrote, or was changed"
    sentence = f"{run}/metrics.jsonl:{number} {problem}: bring back the file that training wrote"
    with pytest.raises(UserError) as error:
        read_runs([run])
    assert str(error.value) == sentence
    # what compares runs leaves it out, and goes on with the others
    config_yaml(tmp_path / "other")
    write(tmp_path / "other", [1])
    notices = []
    (other,) = read_runs([run, tmp_path / "other"], notices)
    assert other.name == "other" and f"left out: {sentence}" in notices
    assert chain.first_break(run / "metrics.jsonl") == STRICT.get(what, number)


def test_a_file_of_an_earlier_version_has_no_chain_and_gets_one(run):
    lines = list(map(without_chain, lines_of(run)))
    (run / "metrics.jsonl").write_text("".join(lines))
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert chain.head(run / "metrics.jsonl") is None
    assert chain.first_break(run / "metrics.jsonl") == 1
    write(run, [6, 7])
    before = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    added = lines_of(run)[STEPS:]
    assert [json.loads(line)["chain"] for line in added] == list(chains_by_hand(added, before))
    assert steps_of(run) == [1, 2, 3, 4, 5, 6, 7]
    # which covers the lines before it
    (run / "metrics.jsonl").write_text("".join([edited(lines[0]), *lines[1:], *added]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:6 does not follow"):
        read_run(run)


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_line_that_a_kill_cut_is_gone_and_the_chain_goes_on(kept, run):
    *lines, last = lines_of(run)
    (run / "metrics.jsonl").write_text("".join([*lines, last[:kept]]))
    assert steps_of(run)[:4] == [1, 2, 3, 4]
    write(run, [5, 6])
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert chain.first_break(run / "metrics.jsonl") is None


NULS = "\0" * 40 + "\n"


def test_garbage_between_lines_costs_a_notice(run):
    """Written by something else while training knew the chain before it."""
    lines = lines_of(run)
    (run / "metrics.jsonl").write_text("".join([*lines[:2], NULS, *lines[2:]]))
    damaged = read_run(run)
    assert [event["step"] for event in damaged.curve("train")] == [1, 2, 3, 4, 5]
    assert damaged.notices == [f"{run}/metrics.jsonl: line 3 is damaged and left out"]
    assert chain.first_break(run / "metrics.jsonl") == 3


@pytest.mark.parametrize("damaged", ["garbage", "the last line, but for its chain"])
def test_after_a_damaged_line_the_chain_begins_anew(damaged, run):
    *lines, last = lines_of(run)
    garbage = [last, NULS] if damaged == "garbage" else ["\0" + last[1:]]
    (run / "metrics.jsonl").write_text("".join([*lines, *garbage]))
    write(run, [6, 7])
    steps = [1, 2, 3, 4, 5, 6, 7] if damaged == "garbage" else [1, 2, 3, 4, 6, 7]
    assert steps_of(run) == steps
    content = "".join([*lines, *garbage])
    before = hashlib.sha256(content.encode()).hexdigest()[:16]
    added = lines_of(run)[-2:]
    assert [json.loads(line)["chain"] for line in added] == list(chains_by_hand(added, before))
    # what was found there is held, too
    (run / "metrics.jsonl").write_text("y" + "".join([*lines, *garbage, *added]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 does not follow"):
        read_run(run)


def test_an_empty_line_that_an_editor_leaves_harms_nothing(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n")
    write(run, [6, 7])
    assert steps_of(run) == [1, 2, 3, 4, 5, 6, 7]


class Failing(PlainEngine):
    """Fails in its fourth step."""

    def step(self, *args, **kwargs):
        if self._steps == 3:
            raise ValueError("a planted fault")
        return super().step(*args, **kwargs)


def test_a_run_that_failed_went_on_and_branched_is_chained_throughout(sample, tmp_path):
    gpt = {"log_ckpt_every": 1, "eval_every": 2, "max_train_steps": 4}
    run = tmp_path / "run"
    with pytest.raises(SilentError):
        train(run, sample, engine=Failing, gpt=gpt)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event": "tra')
    train(run, sample, gpt=gpt)
    branch = tmp_path / "branch"
    train(branch, sample, gpt={**gpt, "branch_from": str(run / "checkpoints/global_step2")})
    for folder, steps in ((run, [1, 2, 3, 4]), (branch, [3, 4])):
        assert steps_of(folder) == steps
        assert chain.first_break(folder / "metrics.jsonl") is None
    assert any(json.loads(line)["event"] == "resume" for line in lines_of(run))


def test_a_long_log_is_not_read_again_where_it_goes_on(run, monkeypatch):
    parsed = []
    parse = chain.parse
    monkeypatch.setattr(chain, "parse", lambda line: parsed.append(line) or parse(line))
    with open(run / "metrics.jsonl", "rb") as file:
        before = chain.before_next(file.fileno())
    assert before == json.loads(lines_of(run)[-1])["chain"] and len(parsed) == 1
