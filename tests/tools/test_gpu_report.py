"""The report of tools/gpu_check.py, from findings as its stages write them."""

import pytest

from gpt.compute import hardware
from tools.benchmarks import paper
from tools.benchmarks.launches import MEMORY, Launch
from tools.gpu_stages import report
from tools.gpu_stages.lab import TINY, Lab

ENDED = {"stage": "graph", "event": "ended", "seconds": 1.0, "failure": None, "cut": None}
CHECK = {"stage": "facts", "check": "kernels that auto takes", "precision": "", "saw": "all"}
NOTHING = "**Nothing was checked**: the stages that ended (graph) take times alone"


@pytest.mark.parametrize("verdict, said", [(None, True), (report.RIGHT, False)])
def test_a_check_of_nothing_says_so(verdict, said):
    findings = [ENDED]
    if verdict:
        findings.append({**CHECK, "verdict": verdict})
    assert (NOTHING in report.verdicts(findings)) == said


@pytest.mark.parametrize(
    "device, known", [("NVIDIA H100 80GB HBM3", True), ("NVIDIA H100 PCIe", False)]
)
def test_what_was_computed_stands_beside_what_was_measured(device, known, monkeypatch):
    """Of a GPU that the model knows, as `bench.py --paper` computes it; a dash of any other."""
    pytest.importorskip("triton")
    lab = object.__new__(Lab)  # a stage's would read this process's input
    lab.device, lab.no_triton = None, None
    monkeypatch.setattr(hardware, "device_name", lambda _: device)
    rate = lab.tokens_on_paper(TINY, 4, 2)
    copy = lab.ms_on_paper(Launch("copy", MEMORY, 1, 26 * 10**9))
    assert (rate is not None) == (copy is not None) == known
    row = {"stage": "models", "table": "models", "model": "ours", "tokens_per_second": 10.0}
    lines = report.text([row | {"tokens_on_paper": rate}]).splitlines()
    cells = next(line for line in lines if line.startswith("| ours |")).split(" | ")
    titles = next(line for line in lines if line.startswith("| model | micro")).split(" | ")
    shown = cells[titles.index("tokens/s on paper")]
    if known:
        step = paper.step(TINY, 4, 2)
        expected = 1e3 * step.tokens / step.milliseconds(paper.GPUS["H100 SXM"])
        assert shown == f"{expected:,.0f}" and copy == pytest.approx(10, rel=1e-3)
    else:
        assert shown == "–"
