"""What the documentation names is there: links, files, options, tools, and the sentences that it
quotes."""

import ast
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT, load_command

from gpt.config.option_names import is_of_arguments, key_at, path_of

README = ROOT / "README.md"
FAQ = ROOT / "docs" / "faq.md"
KEYS = ROOT / "ds_configs" / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), KEYS]
TAKE_OPTIONS_OF_TRAINING = ("tools/check_model.py", "tools/sweep.py", "tools/throughput.py")
SUBCOMMANDS = {
    "tools/import_languini.py": ("data", "checkpoint"),
    "tools/referee.py": (
        "new",
        "check",
        "measure",
        "run",
        "judge",
        "pack",
        "verify",
        "board",
    ),
}
# Of Slurm and of containers, whose command lines are not ours to ask.
FOREIGN_OPTIONS = {"--requeue", "--signal", "--ipc", "--shm-size", "--mca"}
LAUNCHERS = ("deepspeed", "torchrun")
MOST_LINES_OF_README = 130
WIDEST_LINE = 110

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page):
    return page.read_text(encoding="utf-8")


def without_blocks(text):
    """Markdown without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def shell_commands(page):
    """Every command of the page's sh blocks, as words."""
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                if words:
                    commands.append(words)
    return commands


# options whose value is what a command writes
WRITES = (
    "--out",
    "--json",
    "--csv",
    "--markdown",
    "--html",
    "--png",
    "--write_config",
    "--run_dir",
    "--per_document",
)


@pages
def test_what_an_example_writes_is_left_out_of_git(page):
    paths = []
    for words in shell_commands(page):
        for option, value in zip(words, words[1:]):
            is_of_the_project = not value.startswith(("-", "/", "~")) and not value.isupper()
            if option in WRITES and is_of_the_project:
                paths.append(value)
    if not paths:
        return
    command = ["git", "check-ignore", "--no-index", *{f"{path}/x" for path in paths}, *paths]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode > 1:
        pytest.skip(f"git does not look at this folder: {done.stderr}")
    ignored = set(done.stdout.split())
    assert [path for path in paths if not {path, f"{path}/x"} & ignored] == []


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text_of(page)), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pages
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(page)))
    broken = []
    for target in targets:
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pages
def test_every_file_that_is_named_exists(page):
    words = [word for code in inline_code(text_of(page)) for word in code.split()]
    words += [word for command in shell_commands(page) for word in command]
    missing = []
    for word in words:
        path = word.partition("::")[0].strip("`,;:\"'")
        if re.match(r"(gpt|tools|tests|ds_configs|docs|\.ci)/", path) and "…" not in path:
            if not any(ROOT.glob(path.rstrip("/"))):
                missing.append(path)
    assert not missing


@pages
def test_what_stands_in_a_file_stands_there(page):
    wrong = []
    for name, place in re.findall(r"`(\w+)` in\s+`((?:gpt|tools|tests)/[\w/.]+)`", text_of(page)):
        defined = rf"^\s*(?:def |class )?{name}\b\s*[(:=]"
        if not re.search(defined, text_of(ROOT / place), re.MULTILINE):
            wrong.append(f"{name} in {place}")
    assert not wrong


@pages
def test_every_test_that_is_named_exists(page):
    named = [word for command in shell_commands(page) for word in command if "::" in word]
    for word in named:
        file, _, function = word.partition("::")
        assert f"def {function}(" in text_of(ROOT / file), word


def options_in(help_text):
    """The options that argparse lists, whatever the description above them says."""
    rows = re.findall(r"^ +(-.*?)(?:  |$)", help_text, re.MULTILINE)
    return {option for row in rows for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", row)}


def help_of(main, *words):
    """The options in what a command prints for --help, in this process."""
    printed, argv = StringIO(), sys.argv
    sys.argv = [*words, "--help"]
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit):
            main()
    finally:
        sys.argv = argv
    return options_in(printed.getvalue())


@cache
def options_of(script, subcommand=None):
    """The options of gpt/train.py and the like, or of one of its subcommands."""
    path = Path(script)
    command = load_command(path.stem, str(path.parent))
    words = [path.name] + ([subcommand] if subcommand else [])
    options = help_of(command.main, *words)
    if script in TAKE_OPTIONS_OF_TRAINING or (script, subcommand) == ("tools/referee.py", "new"):
        options |= options_of("gpt/train.py")
    return options


@cache
def options_of_launcher(name):
    if name == "torchrun":
        from torch.distributed.run import get_args_parser

        return options_in(get_args_parser().format_help())
    from deepspeed.launcher.runner import parse_args

    return help_of(parse_args, name)


def test_every_option_in_a_command_is_known_to_it():
    unknown = []
    for page in PAGES:
        for words in shell_commands(page):
            scripts = [word for word in words if re.fullmatch(r"(gpt|tools)/\w+\.py", word)]
            if not scripts or scripts == ["gpt/model.py"]:
                continue
            script = scripts[0]
            at = words.index(script)
            own = words[at + 1 :]
            subcommand = own[0] if script in SUBCOMMANDS else None
            known = options_of(script, subcommand)
            if options_of("gpt/train.py") <= known:
                own = [word for word in own if not is_key_of_a_run(word)]
            unknown += [f"{script} {word}" for word in own if is_option(word) and word not in known]
            if words[0] in LAUNCHERS:
                launcher = options_of_launcher(words[0])
                before = [word for word in words[1:at] if is_option(word)]
                unknown += [f"{words[0]} {word}" for word in before if word not in launcher]
    assert not unknown


def is_option(word):
    return re.fullmatch(r"--?[a-z]\S*", word) is not None


def is_key_of_a_run(word):
    """Whether an option is called by the path of a value of a run's JSON."""
    path = path_of(word)
    if path is None:
        return False
    return key_at(path) is not None or is_of_arguments(path.rpartition(".")[0])


def commands_of_tools():
    """tools/… that can be called."""
    tools = sorted((ROOT / "tools").glob("*.py"))
    return [f"tools/{tool.name}" for tool in tools if "command(main)" in text_of(tool)]


def test_every_option_in_passing_is_known_to_some_command():
    known = set(FOREIGN_OPTIONS)
    for script in ["gpt/train.py", "gpt/eval.py", *commands_of_tools()]:
        known |= options_of(script)
    for script, subcommands in SUBCOMMANDS.items():
        for name in subcommands:
            known |= options_of(script, name)
    for launcher in LAUNCHERS:
        known |= options_of_launcher(launcher)
    unknown = []
    for page in PAGES:
        for code in inline_code(text_of(page)):
            words = re.findall(r"(?<!\S)--[a-z][\w.-]*", code)
            words = [word for word in words if not is_key_of_a_run(word)]
            unknown += [f"{page.name}: {word}" for word in words if word not in known]
    assert not unknown


def test_the_pages_name_every_tool():
    everything = "\n".join(map(text_of, PAGES))
    assert not [tool for tool in commands_of_tools() if tool not in everything]


def test_readme_is_short_and_leads_to_every_page():
    text = text_of(README)
    assert len(text.splitlines()) <= MOST_LINES_OF_README
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", text)}
    assert not [page.name for page in PAGES[1:] if page not in linked]


def test_readme_holds_the_one_command_that_tests():
    (section,) = re.findall(r"^## Tests$(.*?)^## ", text_of(README), re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^python3 -m venv .*$", section, re.MULTILINE)
    assert command.startswith("python3 -m venv --clear .venv-test && ")


@pytest.mark.parametrize("page", PAGES[:-1], ids=lambda page: page.name)
def test_lines_can_be_read(page):
    """Tables, quoted sentences, pictures and what is set by hand aside, which cannot be broken."""
    lines = without_blocks(text_of(page)).splitlines()
    wide = [line for line in lines if len(line) > WIDEST_LINE and line[0] not in "|>! "]
    assert not wide


def worth_looking_for(text):
    """Whether a text says more than words that stand in every sentence: a phrase, or a key."""
    return len(text) >= 10 and any(mark in text.strip() for mark in " ._")


class Templates(ast.NodeVisitor):
    """The literal pieces of every text in a module, between which values stand."""

    def __init__(self):
        self.found = []

    def visit_Constant(self, node):
        if isinstance(node.value, str):
            self.found.append([node.value])

    def visit_JoinedStr(self, node):
        literal = [part.value for part in node.values if isinstance(part, ast.Constant)]
        self.found.append(literal)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)


@cache
def templates():
    visitor = Templates()
    for folder in ("gpt", "tools"):
        for module in sorted((ROOT / folder).rglob("*.py")):
            visitor.visit(ast.parse(text_of(module)))
    return [pieces for pieces in visitor.found if worth_looking_for("".join(pieces))]


def cover(sentence, pieces):
    """Which characters of a sentence a text with values in it accounts for, all of it in order."""
    covered, at = set(), 0
    for piece in pieces:
        at = sentence.find(piece, at)
        if at < 0:
            return set()
        covered |= set(range(at, at + len(piece)))
        at += len(piece)
    return covered


def quoted_sentences():
    quotes = re.findall(r"^> (`+)(.+)\1$", text_of(FAQ), re.MULTILINE)
    return [sentence.strip() for _, sentence in quotes]


def test_there_are_sentences_to_look_for():
    assert len(quoted_sentences()) == len(re.findall(r"^>", text_of(FAQ), re.MULTILINE)) >= 20


@pytest.mark.parametrize("sentence", quoted_sentences())
def test_a_quoted_sentence_stands_in_the_code(sentence):
    """Every word of it, … aside, comes from a text of the code that the sentence holds whole."""
    covered = set()
    for pieces in templates():
        covered |= cover(sentence, pieces)
    words = [match for match in re.finditer(r"[^\s…]+", sentence) if match[0].strip(".,:;()'\"")]
    strange = [match[0] for match in words if not covered & set(range(*match.span()))]
    assert not strange, f"{strange}: nothing in the code says so"
