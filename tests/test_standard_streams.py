"""Commands whose standard streams are closed, full, of another encoding, or read by halves."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys
sys.path[0] = ROOT
from gpt.errors import command, UserError
def main():
    BODY
command(main)
"""


def run(body, shell="", **options):
    """A command whose main is `body`, with a shell's redirections."""
    program = PROGRAM.replace("ROOT", repr(str(ROOT))).replace("BODY", body)
    words = f'exec "$0" -c "$1" {shell}'
    return subprocess.run(
        ["bash", "-c", words, sys.executable, program],
        text=True,
        capture_output=True,
        errors="surrogateescape",
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("body", ["print('x')", "print('x' * 10**6)"])
def test_output_that_does_not_fit_fails_in_one_sentence(body):
    done = run(body, "> /dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: standard output cannot be written to: No space left on device\n")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    done = run("print('x\\n' * 10**6)", "| head -n 1; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("x\n141\n", "")


def test_closed_streams_are_no_reason_to_fail(tmp_path):
    body = "open('f', 'w').write('whole'); print('to stdout'); print('e', file=sys.stderr)"
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = run(body, closed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        # else the file would have been opened as the closed stream
        assert (tmp_path / "f").read_text() == "whole"


def test_a_mistake_is_a_mistake_where_nobody_hears_of_it():
    for closed in ("2>&-", "2> /dev/full"):
        assert run("raise UserError('x')", closed).returncode == 2


def test_any_text_is_printed_and_none_is_obeyed():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run(r"print('\u00b1 \udcff \x1b[2J')", env=environment)
    assert (done.returncode, done.stdout) == (0, "\\xb1 \\udcff \\x1b[2J\n")
    done = run(r"raise UserError('a \x1b]0;x\x07 file')")
    assert (done.returncode, done.stderr) == (2, "error: a \\x1b]0;x\\x07 file\n")


def test_what_nobody_foresaw_is_one_sentence_and_a_file(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = run(r"{}['a\nb']", env=environment)
    assert done.returncode == 1
    (report,) = tmp_path.iterdir()
    assert done.stderr == (
        "error: unforeseen at <string>:6 (KeyError: 'a\\nb'): a fault of the trainer, so please"
        f" report it with {report}, which holds the traceback and names paths of this machine\n"
    )
    assert "Traceback" in report.read_text() and report.stat().st_mode & 0o077 == 0


def test_too_little_memory_is_told():
    done = run("raise MemoryError")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: there is not enough memory here")


def test_a_logger_that_took_the_stream_before_goes_on():
    body = "handler.stream.write('still\\n'); print('here', file=sys.stderr)"
    program = "import logging; handler = logging.StreamHandler()\n" + PROGRAM
    program = program.replace("ROOT", repr(str(ROOT))).replace("BODY", body)
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "still\nhere\n")


def test_what_is_not_buffered_stays_so():
    done = run("print(sys.stdout.write_through)", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.stdout == "True\n"


def test_a_child_has_all_streams_too(tmp_path):
    child = "import os; print([os.fstat(n).st_size for n in range(3)], file=open('f', 'w'))"
    body = f"import subprocess; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run(body, "<&- >&- 2>&-", cwd=tmp_path).returncode == 0
    assert (tmp_path / "f").read_text() == "[0, 0, 0]\n"


def test_a_working_directory_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    done = run("import os; os.rmdir(os.getcwd()); os.getcwd()", cwd=tmp_path / "gone")
    assert (done.returncode, done.stderr) == (
        2,
        "error: the folder that this command was started in is gone: start it in another\n",
    )


def test_a_disk_that_dies_is_no_fault_of_the_trainer():
    done = run("import errno; raise OSError(errno.EIO, 'Input/output error')")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the system failed: Input/output error; ")
