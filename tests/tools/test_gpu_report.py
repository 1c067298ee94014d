"""The report of tools/gpu_check.py, from findings as its stages write them."""

import pytest

from tools.gpu_stages import report

ENDED = {"stage": "graph", "event": "ended", "seconds": 1.0, "failure": None, "cut": None}
CHECK = {"stage": "facts", "check": "kernels that auto takes", "precision": "", "saw": "all"}
NOTHING = "**Nothing was checked**: the stages that ended (graph) take times alone"


@pytest.mark.parametrize("verdict, said", [(None, True), (report.RIGHT, False)])
def test_a_check_of_nothing_says_so(verdict, said):
    findings = [ENDED]
    if verdict:
        findings.append({**CHECK, "verdict": verdict})
    assert (NOTHING in report.verdicts(findings)) == said
