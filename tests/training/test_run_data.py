"""The dataset of a run beside its configuration: one report of all mistakes."""

import shutil

import pytest
from conftest import tiny_run

from gpt.config.draft import Draft
from gpt.config.options import SAMPLE
from gpt.config.resolve import complete
from gpt.errors import UserError
from gpt.training.run_data import RunData


def drafted(**options):
    return complete(Draft(tiny_run(**options), "tiny"))


def test_mistakes_of_file_and_dataset_come_in_one_report(sample):
    gpt = {"data_root": str(sample), "vocab_size": 7, "eval_data_split": "tset"}
    draft = drafted(gradient_cliping=1, gpt=gpt)
    draft.add(RunData(draft, may_be_absent=False).mistakes())
    with pytest.raises(UserError) as caught:
        draft.settle()
    head, file, vocabulary, split = str(caught.value).splitlines()
    assert head == "tiny: 3 mistakes"
    assert "gradient_cliping is not a known key" in file
    assert "gpt.vocab_size is 7, but the tokenizer of" in vocabulary
    assert f"{sample} has no split 'tset': it has" in split


def test_a_mistaken_value_is_not_held_against_the_dataset(sample):
    draft = drafted(train_batch_size="8", gpt={"data_root": str(sample), "vocab_size": 1})
    assert len(draft.mistakes) == 2
    assert RunData(draft, may_be_absent=False).mistakes() == []


def test_a_vocabulary_size_that_is_not_given_is_the_datasets(sample):
    draft = drafted(gpt={"data_root": str(sample), "vocab_size": None})
    draft.add(RunData(draft, may_be_absent=True).mistakes())
    config = draft.settle()
    assert config.model.vocab_size == 2048
    assert config.sources["gpt.vocab_size"] == "derived: from the dataset"


def test_the_samples_vocabulary_is_known_before_it_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draft = drafted(gpt={"data_root": SAMPLE, "vocab_size": None})
    draft.add(RunData(draft, may_be_absent=False).mistakes())
    assert draft.settle().model.vocab_size == 2048


def test_without_a_dataset_the_vocabulary_size_must_be_given(tmp_path):
    root = tmp_path / "none"
    draft = drafted(gpt={"data_root": str(root), "vocab_size": None})
    draft.add(RunData(draft, may_be_absent=True).mistakes())
    with pytest.raises(UserError) as caught:
        draft.settle()
    assert str(caught.value) == (
        f"tiny: gpt.vocab_size is missing, and no dataset {root} is there to take it from: give"
        " --vocab_size"
    )


def test_a_place_that_is_no_dataset_gets_advice_that_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)

    def mistake(root):
        return RunData(drafted(gpt={"data_root": root}), may_be_absent=False).mistakes()[0]

    # not into the folder of the texts
    assert mistake("texts").endswith("prepare_data.py --input texts --out FOLDER`")
    assert mistake("boks").endswith(f"; or name one by --data_root, as it is seen from {tmp_path}")
    assert mistake("texts/a.txt").startswith("texts/a.txt is a file, and a dataset is a folder")


@pytest.mark.parametrize("only_looked_at", [True, False])
def test_a_dataset_may_be_absent_where_nothing_is_trained(tmp_path, only_looked_at):
    draft = drafted(gpt={"data_root": str(tmp_path / "none")})
    mistakes = RunData(draft, may_be_absent=only_looked_at).mistakes()
    if only_looked_at:
        assert mistakes == []
    else:
        assert mistakes[0].startswith(f"{tmp_path / 'none'} holds no dataset (no manifest.json)")


def test_a_sample_that_nobody_built_here_gets_a_sentence(tmp_path, monkeypatch):
    """As on a host that has a disk of its own, where rank 0 built it on another."""
    monkeypatch.chdir(tmp_path)
    data = RunData(drafted(gpt={"data_root": SAMPLE}), may_be_absent=False)
    assert data.awaits_sample and data.mistakes() == []
    with pytest.raises(UserError, match=f"^{SAMPLE} holds no dataset"):
        data.open()


def test_a_scored_split_that_is_not_as_it_was_written_is_refused_before_training(sample, tmp_path):
    shutil.copytree(sample, tmp_path / "data")
    path = tmp_path / "data" / "test" / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[5000:25_000] = bytes(20_000)
    path.write_bytes(content)
    gpt = {"data_root": str(tmp_path / "data")}
    data = RunData(drafted(gpt=gpt), may_be_absent=False, hash_scored=True)
    (mistake,) = data.mistakes()
    assert mistake.startswith(f"{path} is not as it was written (its sha256 is another than in")
    assert RunData(drafted(gpt=gpt), may_be_absent=False).mistakes() == []
    # another split than the one that is scored
    train = {**gpt, "eval_data_split": "train"}
    assert RunData(drafted(gpt=train), False, hash_scored=True).mistakes() == []
