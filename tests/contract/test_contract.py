"""What a model file is refused for, each kind of mistake by its sentence; good ones pass."""

import pytest

pytest.importorskip("torch")

from broken_model_files import BAD
from model_files import GOOD, MODEL, changed

from gpt.architecture.architecture import Architecture
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.contract.checks import CHECKS, run
from gpt.contract.subject import Subject
from gpt.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = ModelConfig(
    n_layers=2, h_dim=16, mlp_dim=32, n_heads=2, head_dim=8, vocab_size=64, seq_len=16
)


def subject_of(folder, text, **options):
    (folder / "model.py").write_text(text)
    code = read_own_code(str(folder / "model.py"), "gpt.model_file")
    return Subject(Architecture(SHAPE, code, options))


def failures(subject):
    results = run(subject, CHECKS, lambda result: None)
    return {result.name: result.seen for result in results if not result.is_right}


def first_failure(subject):
    """(name, sentence) of the first check that fails."""
    for named in CHECKS:
        for result in run(subject, [named], lambda result: None):
            if not result.is_right:
                return result.name, result.seen
    return None


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_a_good_model_passes(tmp_path, changes):
    assert failures(subject_of(tmp_path, changed(*changes))) == {}


@pytest.mark.parametrize("changes, check, sentence", BAD.values(), ids=BAD)
def test_a_bad_model_is_refused(tmp_path, changes, check, sentence):
    subject = subject_of(tmp_path, changed(*changes))
    name, seen = first_failure(subject)
    assert name == check, seen
    if sentence.startswith((":", " ")):
        _, first_line = changes[0]
        line = changed(*changes).split(first_line)[0].count("\n") + 1
        sentence = sentence.replace("{line}", str(line)).replace("{folder}", str(tmp_path))
        expected = f"{tmp_path}/model.py{sentence}"
        assert seen.startswith(expected)
    else:
        assert sentence in seen


def test_what_is_no_python_is_refused_before(tmp_path):
    with pytest.raises(UserError) as error:
        subject_of(tmp_path, MODEL.replace("# first", "x = ("))
    assert f"{tmp_path}/model.py:36 is no Python ('(' was never closed)" in str(error.value)


def test_an_option_that_build_does_not_take(tmp_path):
    name, seen = first_failure(subject_of(tmp_path, MODEL, rate=3))
    assert name == "builds"
    assert "build takes no option 'rate': change --model_options.rate (it takes" in seen
