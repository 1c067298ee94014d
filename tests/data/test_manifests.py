"""Places that are taken for a dataset, and what each of them is told."""

from pathlib import Path

import pytest

from gpt.data import manifests
from gpt.errors import UserError

MAKE = "make one with `python tools/prepare_data.py --input {place} --out FOLDER`"


@pytest.mark.parametrize(
    "place, sentence",
    [
        (
            "texts",
            "texts holds no dataset (no manifest.json), but texts such as a.txt: " + MAKE,
        ),
        (
            "splits",
            "splits holds no dataset (no manifest.json), but texts such as test/b.txt: " + MAKE,
        ),
        (
            "texts/a.txt",
            "texts/a.txt is a file, and a dataset is a folder: "
            + MAKE
            + ", or evaluate a text as it is with `python gpt/eval.py … --text texts/a.txt`",
        ),
        (
            "books/tokenizer.model",
            "books/tokenizer.model is a file of a dataset: give its folder, books",
        ),
        (
            "none",
            "none holds no dataset (no manifest.json): make one from a folder of .txt files with"
            " `python tools/prepare_data.py --input FOLDER --out none`; or name one by --data_root,"
            " as it is seen from {here}",
        ),
        (
            "empty",
            "empty holds no dataset (no manifest.json): make one from a folder of .txt files with"
            " `python tools/prepare_data.py --input FOLDER --out empty`",
        ),
    ],
)
def test_a_place_without_a_dataset(place, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "texts/a.txt",
        "splits/test/b.txt",
        "books/manifest.json",
        "books/tokenizer.model",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        manifests.read(Path(place))
    assert str(caught.value) == sentence.format(place=place, here=tmp_path)
