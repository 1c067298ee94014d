"""Text from outside, made harmless for the place where it is shown: one function for each place."""

import html
import re

# Controls, which move a terminal's cursor or change its settings, and marks that turn the direction
# of text. Line ends and tabs are text.
_CONTROLS = re.compile(
    "(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# What CommonMark, and GitHub, give a meaning within a cell: code, emphasis, links, HTML, entities,
# mathematics; emoji, addresses of pages, mentions of people. A _ within a word has none.
_MARKDOWN = re.compile(r"[\\`*\[\]<|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//|[\w+-]+:)|(?<!\w)@(?=\w)")
# spreadsheets take a cell that begins so for a formula
_FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """For a terminal or a log: every control but line ends and tabs is written as Python writes it,
    `\\x1b`, and so is a byte of a file's name that is not UTF-8."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def in_one_line(text: str) -> str:
    """For a message of one line, or a cell of a table: `printable`, with line ends and tabs written
    as Python writes them too."""
    return printable(text).replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def markdown_cell(value: object) -> str:
    """For a cell of a Markdown table: shown as it is, and never markup or HTML."""
    return _MARKDOWN.sub(lambda match: "\\" + match[0], in_one_line(str(value)))


def csv_cell(value: object) -> object:
    """For a cell of a CSV file that a spreadsheet may open: a text that it would take for a formula
    gets an apostrophe in front. Numbers stay."""
    if not isinstance(value, str):
        return value
    text = in_one_line(value)
    return "'" + text if text.startswith(_FORMULA) else text


def html_text(value: object) -> str:
    """For an element or a quoted attribute of a page of HTML."""
    return html.escape(printable(str(value)))
