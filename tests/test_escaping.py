"""Text from outside, shown."""

import csv
import io

from gpt.escaping import csv_cell, html_text, in_one_line, markdown_cell, printable

TITLE = "\x1b]0;PWNED\x07\x1b[2J"


def test_a_terminal_is_moved_by_nothing():
    assert printable(f"a{TITLE}\n\tb\r\n") == "a\\x1b]0;PWNED\\x07\\x1b[2J\n\tb\r\n"
    assert printable("\x9b1m \x7f \rover \u202e \udcff é 漢 🙂") == (
        "\\x9b1m \\x7f \\rover \\u202e \\udcff é 漢 🙂"
    )
    assert in_one_line("a\r\nb\tc") == "a\\r\\nb\\tc"


def test_a_cell_of_markdown_is_no_markup():
    assert markdown_cell("a|b<img src=x onerror=alert(1)>") == (
        "a\\|b\\<img src=x onerror=alert(1)>"
    )
    assert markdown_cell("a\\|b\n[x](http://y)") == "a\\\\\\|b\\\\n\\[x\\](http\\://y)"
    assert markdown_cell("my_run: 6h, _x_ $a$ @me :tada: a@b https://c &amp;") == (
        "my_run: 6h, \\_x\\_ \\$a\\$ \\@me \\:tada: a@b https\\://c \\&amp;"
    )
    assert markdown_cell("weight_decay 1 -> 2, **b**") == "weight_decay 1 -> 2, \\*\\*b\\*\\*"
    assert markdown_cell(1.5) == "1.5"


def test_a_cell_of_csv_is_no_formula():
    assert csv_cell("=1+1|' cmd") == "'=1+1|' cmd"
    assert csv_cell("-x\ny") == "'-x\\ny"
    assert csv_cell(-1.5) == -1.5
    out = io.StringIO()
    csv.writer(out).writerow([csv_cell('a"b'), csv_cell("@SUM")])
    assert out.getvalue() == '"a""b",\'@SUM\r\n'


def test_html_is_text():
    assert html_text('<b onclick="x">\x1b') == "&lt;b onclick=&quot;x&quot;&gt;\\x1b"
