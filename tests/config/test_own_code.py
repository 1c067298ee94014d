"""Code of the user's own: which files belong to it, and when two of them are the same."""

import os

import pytest

from gpt.config.own_code import MOST_FILES, read_own_code
from gpt.errors import UserError


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_bytes(text.encode())
    return folder / "model.py"


def read(path):
    return read_own_code(str(path), "gpt.model_file")


def test_what_is_imported_from_beside_belongs_to_it(tmp_path):
    model = write(
        tmp_path,
        model="import torch, math\nfrom parts import norm\nif 1:\n    import deeper.inside\n",
        parts="def f():\n    from more import x\n",
        more="x = 1\n",
        other="never imported",
    )
    (tmp_path / "deeper").mkdir()  # a package is no part of it
    assert sorted(read(model).files) == ["model.py", "more.py", "parts.py"]


def test_the_same_content_is_the_same_code_wherever_it_lies(tmp_path):
    one = read(write(tmp_path / "a", model="import parts\n", parts="x = 1\n"))
    other = read(write(tmp_path / "b", model="import parts\r\n", parts="x = 1\n"))
    assert one.hash == other.hash and one.facts() == other.facts()
    changed = read(write(tmp_path / "b", parts="x = 2\n"))
    assert changed.hash != one.hash and changed.name == one.name


def test_two_files_may_import_each_other(tmp_path):
    assert len(read(write(tmp_path, model="import parts", parts="import model")).files) == 2


@pytest.mark.parametrize(
    "files, sentence",
    [
        ({"model": "def f(:\n"}, "model.py:1 is no Python"),
        ({"model": "import parts", "parts": "\n\nx = = 1"}, "parts.py:3 is no Python"),
        ({"model": "import json", "json": ""}, "has the name of an installed package, 'json'"),
        ({"model": "import numpy", "numpy": ""}, "has the name of an installed package, 'numpy'"),
        ({"model": "x = 1\0"}, "is no Python"),
        ({"model": "# " + "x" * (1 << 20)}, "more than the 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_code_is_refused(tmp_path, files, sentence):
    import numpy  # noqa: F401  # as a run has it loaded

    with pytest.raises(UserError) as caught:
        read(write(tmp_path, **files))
    assert sentence in str(caught.value)


def test_files_without_end_are_refused(tmp_path):
    files = {f"m{number}": f"import m{number + 1}" for number in range(MOST_FILES + 1)}
    with pytest.raises(UserError, match=f"more than {MOST_FILES} files"):
        read(write(tmp_path, model="import m0", **files))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"")
    for name, sentence in {
        "pipe.py": "a pipe or a device, not a file",
        "folder.py": "Is a directory",
        "absent.py": "No such file",
        "weights.bin": "which is no file of Python",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / name)
