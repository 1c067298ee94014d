"""The command line of train.py."""

import pytest

from gpt.config.command_line import parse_command_line
from gpt.errors import UserError


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (
            ["--max_lrr", "1"],
            (
                "command line: unknown option --max_lrr (did you mean '--max_lr'?) (--help lists"
                " the options)"
            ),
        ),
        (
            ["--max_lr"],
            "command line: --max_lr needs a value",
        ),
        (
            ["--max_l", "1"],
            (
                "command line: unknown option --max_l (did you mean '--max_lr'?) (--help lists the"
                " options)"
            ),
        ),
        (["24h.json"], "command line: '24h.json' stands where an option --name was expected"),
        (["--comment", "a", "b"], "command line: 'b' stands where an option --name was expected"),
        (["--"], "command line: '--' stands where an option --name was expected"),
        (["--=5"], "command line: '--=5' stands where an option --name was expected"),
    ],
)
def test_a_mistake_on_the_command_line_gets_its_sentence(argv, sentence):
    with pytest.raises(UserError) as caught:
        parse_command_line(["--ds_config", "x.json", *argv])
    assert str(caught.value) == sentence
