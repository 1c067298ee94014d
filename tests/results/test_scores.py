"""The final evaluations that runs are ranked by, and what is not compared."""

import json

import pytest
import yaml
from synthetic_runs import amend, evaluation, identified_run, synthetic_run, train, write_lines

from gpt.errors import UserError
from gpt.metrics.runs import read_runs
from gpt.results import evaluations
from gpt.results.scores import final_scores, how_much, incomparable

DIFFERENT = [
    (
        {"fingerprint": "e" * 64},
        {},
        "a and b were trained on different datasets (fingerprints ffffffffffff and eeeeeeeeeeee)",
    ),
    (
        {"eval_data_split": "java"},
        {"split": "java"},
        "a and b were evaluated on different splits (test and java)",
    ),
    (
        {},
        {"scored": 1200},
        (
            "a and b scored different parts of the split 'test' (1,000 and 1,200 bytes): score the"
            " whole split of each (final_eval, or gpt/eval.py --join), or evaluate them with the"
            " same seq_len, last_n, eval_batch_size and max_eval_steps"
        ),
    ),
    (
        {"last_n": 8},
        {},
        (
            "a and b gave the scored tokens different context (last_n 16 and 8): evaluate them with"
            " the same last_n"
        ),
    ),
    ({"fingerprint": None}, {}, "b does not tell its dataset's fingerprint"),
    ({}, {"bytes": None}, "b does not tell how many bytes its evaluations scored"),
]


@pytest.mark.parametrize("options, line, reason", DIFFERENT)
def test_what_does_not_measure_the_same_is_not_compared(options, line, reason, tmp_path):
    for name, more, lines in (("a", {}, {}), ("b", options, line)):
        synthetic_run(tmp_path / name, 5, **more)
        write_lines(tmp_path / name, [train(5, 3.0), evaluation(5, 3.0, **lines)])
    assert incomparable(read_runs([tmp_path / "a", tmp_path / "b"])) == reason
    assert incomparable(read_runs([tmp_path / "a"])) is None


def test_equal_documents_are_compared_and_others_not(tmp_path):
    for name in ("a", "b"):
        identified_run(tmp_path / name)
    amend(tmp_path / "b", {"dataset/fingerprint": "e" * 64, "dataset/tokenizer": "u" * 64})
    assert incomparable(read_runs([tmp_path])) is None
    amend(tmp_path / "b", {"dataset/scored/documents": "3" * 64})
    assert incomparable(read_runs([tmp_path])) == (
        "a and b were evaluated on different texts (documents 222222222222 and 333333333333)"
    )


def whole(loss, **more):
    """The evaluation of the whole split of an `identified_run`."""
    return evaluation(12, loss, scored=20000, of_tokens=5000, **more)


def join(run, figures):
    """Write what eval.py --join would."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    told = {"step": 12, "documents": "2" * 64, "last_n": 16, "seq_len": 32}
    curve = evaluations.digest_with_seed(config)
    path = evaluations.file_of(run, "test", 12)
    path.parent.mkdir()
    path.write_text(json.dumps({**figures, **told, "run": {"step": 12, "curve": curve}}))
    return path


def test_the_whole_split_counts_where_all_have_scored_it(tmp_path):
    for name, layers in (("in-training", 2), ("afterwards", 3)):
        identified_run(tmp_path / name, n_layers=layers)
    write_lines(tmp_path / "in-training", [train(12, 3.0), whole(3.0)])
    path = join(tmp_path / "afterwards", whole(2.8))
    runs = read_runs([tmp_path / "in-training", tmp_path / "afterwards"])
    notices = []
    scores = final_scores(runs, notices)
    assert scores.whole and notices == []
    assert scores.of(runs, "loss").tolist() == [3.0, 2.8]
    assert how_much(runs, scores) == "the whole split, 5,000 tokens, 20,000 bytes"
    # one without the other: the parts are no longer the same
    path.unlink()
    with pytest.raises(UserError, match=r"\(20,000 and 1,000 bytes\): score the whole split"):
        final_scores(runs, notices)


def test_a_joined_evaluation_of_another_run_is_named_and_not_used(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        identified_run(tmp_path / name, seed=seed)
    path = join(tmp_path / "a", whole(2.8))
    stranger = evaluations.file_of(tmp_path / "b", "test", 12)
    stranger.parent.mkdir()
    stranger.write_bytes(path.read_bytes())
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    notices = []
    scores = final_scores(runs, notices)
    assert not scores.whole and scores.of(runs, "bytes").tolist() == [1000, 1000]
    assert notices == [
        f"{stranger} is of another run, or of other settings: remove it, or evaluate again with"
        " --join"
    ]
    assert how_much(runs, scores) == "the first 250 of 5,000 tokens (5.0%), 1,000 bytes"
