"""The board as Markdown, and as a page."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from submissions import BYTES, END_TOKENS, TEXT_TOKENS, submission

from gpt.packs.board import of_submissions
from gpt.packs.board_page import as_html
from gpt.packs.board_text import as_markdown
from gpt.referee.worth import Worth
from gpt.results.published import of_class

BASE = {0: 1.28, 1: 1.30, 2: 1.29}
BETTER = {0: 1.18, 1: 1.20, 2: 1.19}


def rows_of(markdown):
    """[{column: cell}] of the first table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    names = cells[0]
    end = next((place for place, row in enumerate(cells) if row[0] == "p"), len(cells))
    return [dict(zip(names, row, strict=True)) for row in cells[2:end]]


def a_board(tmp_path, **options):
    packs = [submission("rope", BETTER, BASE, path=tmp_path / "packs" / "rope", **options)]
    return of_submissions(packs)


def test_a_row_tells_its_figures_with_their_intervals(tmp_path):
    contender, baseline, published = rows_of(as_markdown(a_board(tmp_path), tmp_path))
    # Student's t for 2 degrees of freedom is 4.302653; three seeds 0.01 apart
    half = 4.302653 * 0.01 / math.sqrt(3)
    nats = (1.19 * BYTES + 2 * END_TOKENS) / (TEXT_TOKENS + END_TOKENS)
    per_token = half * BYTES / (TEXT_TOKENS + END_TOKENS)
    ppl = math.exp(1.19)
    assert contender["rank"] == "1" and baseline["rank"] == "2"
    assert contender["author"] == "A. Nonymous"
    assert contender["nats per token"] == f"{nats:.4f} ± {per_token:.4f}"
    assert contender["normalised perplexity"] == f"{ppl:.4f} ± {ppl * half:.4f}"
    bits = [1.19 / math.log(2), half / math.log(2)]
    assert contender["bits per byte"] == f"{bits[0]:.4f} ± {bits[1]:.4f}"
    assert contender["verdict"] == "better"
    assert contender["pack"] == "[rope](packs/rope)"
    assert baseline["contender"] == "6h (baseline)"
    assert baseline["difference to its baseline (nats per byte)"] == "-"
    (five,) = of_class("6h")
    assert published["contender"] == "6h (published)"
    assert published["nats per token"] == five.loss.in_words()
    assert published["rank"] == published["bits per byte"] == "-"


@pytest.mark.parametrize(
    "low, high, cell",
    [(1.10, 1.45, "+25.0% (+10.0% to +45.0%)"), (math.nan, math.nan, "+25.0%")],
    ids=["an interval", "one seed"],
)
def test_what_a_difference_is_worth_stands_in_its_row(tmp_path, low, high, cell):
    pack = submission("rope", BETTER, BASE)
    worth = Worth(1.25, low, high, -0.1, "tokens", ((1e6, 1.3), (2e6, 1.2)))
    pack = replace(pack, judgement=replace(pack.judgement, worth=worth))
    contender, baseline, _ = rows_of(as_markdown(of_submissions([pack]), tmp_path))
    assert contender["worth of compute"] == cell
    assert baseline["worth of compute"] == "-"


def test_a_row_says_what_is_weak_about_it(tmp_path):
    board = a_board(tmp_path, has_weights=False, off_class=("scheduler.params.max_lr",))
    contender, baseline = rows_of(as_markdown(board, tmp_path))
    assert contender["pack"] == "[rope](packs/rope) without weights"
    assert baseline["contender"] == "6h (baseline, not ds_configs/6h.json)"


def test_the_pairs_stand_below(tmp_path):
    lines = as_markdown(a_board(tmp_path), tmp_path).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| p "))
    assert lines[start] == "| p | rope | 6h (baseline) |"
    assert re.fullmatch(r"\| rope \|  \| (0\.\d{3}|\\< 0\.001) \|", lines[start + 2])


def test_figures_per_token_are_left_out_under_several_tokenizers(tmp_path):
    board = a_board(tmp_path, tokenizers=("t" * 64, "u" * 64))
    contender, baseline, _ = rows_of(as_markdown(board, tmp_path))
    assert contender["nats per token"] == baseline["nats per token"] == "-"
    assert contender["bits per byte"] != "-"


def test_links_lead_from_the_folder_of_the_file(tmp_path):
    text = as_markdown(a_board(tmp_path), tmp_path / "site" / "tables")
    assert "[rope](../../packs/rope)" in text


HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) \x1b[2J"


def test_names_of_strangers_are_shown_and_do_nothing(tmp_path):
    path = tmp_path / 'javascript:alert(1)"><b> )'
    board = of_submissions([submission("rope", BETTER, BASE, path=path, author=HOSTILE)])
    markdown = as_markdown(board, tmp_path)
    assert rows_of(markdown)[0]["pack"].endswith("(javascript%3Aalert%281%29%22%3E%3Cb%3E%20%29)")
    assert "\x1b" not in markdown and "<script" not in markdown.replace("\\<script", "")
    elements = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: elements.append((tag, dict(attributes)))
    parser.feed(as_html(board, tmp_path))
    names = {tag for tag, _ in elements}
    assert not names & {"script", "b", "img", "iframe"}
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert links and all(link.startswith("javascript%3A") for link in links)


def test_the_page_allows_its_own_style_and_nothing_else(tmp_path):
    page = as_html(a_board(tmp_path), tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert "url(" not in style and "@import" not in style
