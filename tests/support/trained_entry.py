"""A trained entry and its pack, made once for all tests of a process. Tests read them; none changes
them."""

import shutil

import pytest


@pytest.fixture(scope="session")
def trained_entry(tmp_path_factory):
    """The folder of an entry, its contender of a model file of its own, whose four runs of two
    seeds are trained and evaluated."""
    from entry_runs import in_this_process, new_entry, small_dataset

    from gpt.config.own_code import VARIANTS
    from gpt.referee import runs

    folder = tmp_path_factory.mktemp("entries")
    model_file = folder / "own.py"
    model_file.write_text((VARIANTS / "lstm.py").read_text() + "# of an author\n")
    new_entry(folder, small_dataset(folder), model_file=str(model_file))
    with in_this_process():
        runs.train(folder / "entry", None, None)
    return folder / "entry"


@pytest.fixture(scope="session")
def pack_of_entry(trained_entry, tmp_path_factory):
    """(the folder of its pack, the words on it)"""
    from gpt.packs import pack

    out = tmp_path_factory.mktemp("packs") / "pack"
    return out, pack.write(trained_entry, out, with_weights=True)


@pytest.fixture
def packed(pack_of_entry, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(pack_of_entry[0], tmp_path / "pack")
