"""The final evaluations that runs are ranked by, and what is not compared."""

import pytest
from synthetic_runs import evaluation, synthetic_run, train, write_lines

from gpt.metrics.runs import read_runs
from gpt.results.scores import incomparable

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
