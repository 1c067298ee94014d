"""Commands that cannot start: an interpreter without packages, packages that do not load, parts
that are no commands."""

import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

from gpt import errors
from gpt.errors import UserError, in_words

COMMANDS = [
    *sorted((ROOT / "tools").glob("*.py")),
    *(ROOT / "gpt" / f"{name}.py" for name in ("train", "eval", "model")),
]
PARTS = [*sorted((ROOT / "tools/benchmarks").glob("[a-z]*.py")), ROOT / "tools/gpu_stages"]


def start(*words):
    """Of an interpreter that has the standard library alone."""
    command = [sys.executable, "-I", "-S", *map(str, words)]
    return subprocess.run(command, text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_says_which_package_is_missing(path):
    done = start(path, "--help")
    if done.returncode == 0:
        assert done.stdout
        return
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    if path.name != "kernel_cases.py":
        assert done.returncode == 2
        assert done.stderr.endswith(
            f" is not installed here ({sys.executable}): run `pip install -e .` in the project's"
            " folder\n"
        )


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_a_part_of_a_command_names_the_command(path):
    done = start(path)
    assert done.returncode == 1
    words = done.stderr.split("`")
    assert words[0].startswith("error: ") and words[2] == ": run that\n"
    assert (ROOT / words[1].split()[1]).is_file()


@pytest.mark.parametrize(
    "error, message",
    [
        (
            ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            f"the package 'yaml' is not installed here ({sys.executable}): run `pip install -e .`"
            " in the project's folder",
        ),
        (
            ImportError("numpy.core.multiarray failed to import\nmore", name="pyarrow.lib"),
            f"the package 'pyarrow.lib' does not load here ({sys.executable};"
            " numpy.core.multiarray failed to import): run `pip install -e .` in the project's"
            " folder, in a new environment",
        ),
    ],
)
def test_a_package_that_does_not_load_is_a_mistake_in_words(error, message):
    explained = in_words(error)
    assert isinstance(explained, UserError) and str(explained) == message


def test_a_package_that_does_not_say_its_name_is_known_by_where_it_fails(tmp_path, monkeypatch):
    (tmp_path / "unfit").mkdir()
    (tmp_path / "unfit/__init__.py").write_text("raise ImportError('\\n\\nOf another ABI\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("unfit")
    message = str(in_words(caught.value))
    assert message.startswith(
        f"the package 'unfit' does not load here ({sys.executable}; Of another ABI): run "
    )


@pytest.mark.parametrize("name", ["gpt.wordings", "tools", None])
def test_a_name_of_our_own_that_is_missing_is_no_mistake_of_the_user(name):
    error = ImportError("cannot import name 'x'", name=name)
    assert in_words(error) is error


@pytest.mark.parametrize("local_rank, order", [("0", ["told"]), ("1", ["waited", "told"])])
def test_a_mistake_of_all_ranks_is_left_to_the_first_of_the_host(local_rank, order, monkeypatch):
    """The one that ends first has the launcher end the others, which then tell nothing more."""
    seen = []
    monkeypatch.setitem(sys.modules, "torch.distributed", None)  # no process group
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: seen.append("waited"))
    monkeypatch.setattr(errors, "tell", lambda error: seen.append("told"))
    errors._tell_once(UserError("x"))
    assert seen == order


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--inptu", "x"], "unknown option --inptu (did you mean '--input'?)"),
        (["--inptu=x"], "unknown option --inptu (did you mean '--input'?)"),
        (["--zzz"], "unknown option --zzz"),
        (["--input=--"], "--input=-- gives no value"),
        (["--input", "a", "b"], "'b': no option takes that; one that takes a path takes one path"),
        (
            ["--input", "a", "b", "c", "d"],
            "'b', and 2 more words: no option takes that; one that takes a path takes one path",
        ),
    ],
)
def test_words_that_belong_to_no_option(words, sentence):
    parser = errors.Parser("a command")
    parser.add_argument("--input")
    with pytest.raises(UserError) as caught:
        parser.parse_args(words)
    assert str(caught.value) == f"command line: {sentence} (--help lists the options)"
