"""A pack of tiny runs, to look at and to damage."""

import shutil

import pytest

# a model of its own by its name alone
MODEL = """
from gpt.variants.modern import build as modern


def build(shape):
    return modern(shape)
"""


@pytest.fixture(scope="session")
def honest_pack(tmp_path_factory):
    """A pack of two seeds a side, whose contender is built by a file of its own."""
    pytest.importorskip("torch")
    from entry_runs import in_this_process, new_entry, small_dataset

    from gpt.referee import pack, runs

    folder = tmp_path_factory.mktemp("honest")
    file = folder / "own_model.py"
    file.write_text(MODEL)
    entry = new_entry(folder, small_dataset(folder), seeds=[0, 1], model_file=str(file))
    with in_this_process():
        runs.train(entry.path, None, None)
    pack.write(entry.path, folder / "pack", with_weights=True)
    return folder / "pack"


@pytest.fixture
def packed(honest_pack, tmp_path):
    return shutil.copytree(honest_pack, tmp_path / "pack")
