"""The report of tools/gpu_check.py, from findings as its stages write them."""

import pytest

from tools.gpu_stages import report

ENDED = {"stage": "graph", "event": "ended", "seconds": 1.0, "failure": None, "cut": None}
RIGHT = {"stage": "facts", "check": "kernels that auto takes", "verdict": report.RIGHT, "saw": "x"}
NOTHING = "**Nothing was checked**: the stages that ended (graph) take times alone"


@pytest.mark.parametrize("findings, said", [([ENDED], True), ([ENDED, RIGHT], False)])
def test_a_check_of_nothing_says_so(findings, said):
    assert (
        NOTHING in report.verdicts([{"precision": "", **finding} for finding in findings])
    ) == said
