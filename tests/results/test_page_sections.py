"""What the report's page tells of a run below the curves."""

import html
import re

from synthetic_runs import amend, give_own_code, identified_run

from gpt.metrics.runs import read_runs
from gpt.results.page_sections import sections


def rows_of(folder):
    """{first cell: second cell} of the first table of a run's page."""
    (run,) = read_runs([folder])
    table = sections(run, 0).partition("</table>")[0]
    rows = re.findall(r"<tr><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", table)
    return {html.unescape(name): html.unescape(value) for name, value in rows}


def test_code_of_ones_own_is_told(tmp_path):
    run = give_own_code(identified_run(tmp_path / "run"), "a", base=500, qk_norm=True)
    give_own_code(run, "b", "optimizer_file", "sign.py")
    amend(run, {"model_file/flops_per_token": 1234567, "model_file/flops_counted": 1200000})
    rows = rows_of(run)
    assert rows["model"] == "rope 2x32-mlp64-attn16"
    assert re.fullmatch("rope.py [0-9a-f]{12}", rows["model file"])
    assert rows["model options"] == "base=500 qk_norm"
    assert rows["FLOPs per token"] == "1,234,567" and rows["of them counted"] == "1,200,000"
    assert rows["optimizer file"].startswith("sign.py ") and rows["optimizer options"] == "-"


def test_where_a_run_began_is_told(tmp_path):
    run = identified_run(tmp_path / "run")
    assert not {"branch of", "first weights of"} & rows_of(run).keys()
    amend(run, {"began_from": {"branch": "runs/<b>/global_step8", "step": 8, "sha256": "3" * 64}})
    assert rows_of(run)["branch of"] == "runs/<b>/global_step8, step 8"
    amend(run, {"began_from": {"folder": "runs/export", "step": 9, "sha256": "3" * 64}})
    assert rows_of(run)["first weights of"] == "runs/export, step 9"
