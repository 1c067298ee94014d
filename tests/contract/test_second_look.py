"""A model that looks ahead, or aside, in the evaluator's own batches alone is refused; good ones
are not."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_files import GOOD, LAST, changed

from gpt.architecture.architecture import Architecture
from gpt.config.own_code import VARIANTS, read_own_code
from gpt.config.shape import ModelConfig
from gpt.contract.checks import CHECKS, run
from gpt.contract.second_look import BRIEF, THOROUGH, SecondLook
from gpt.contract.subject import Subject
from gpt.errors import UserError
from gpt.evaluation import Evaluator

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = ModelConfig(
    n_layers=2, h_dim=16, mlp_dim=32, n_heads=2, head_dim=8, vocab_size=64, seq_len=24
)
TOKENS = 300
LAST_N = 8
BATCH = 7


def model_of(folder, text):
    (folder / "model.py").write_text(text)
    return subject_of(folder / "model.py")


def subject_of(path):
    return Subject(Architecture(SHAPE, read_own_code(str(path), "gpt.model_file")))


def looked_at(subject, batch=BATCH, tokens=TOKENS, seed=0, effort=BRIEF):
    """The look of an evaluation of a model with the noisy weights of the checks."""
    ids = np.random.default_rng(0).integers(SHAPE.vocab_size, size=tokens).astype(np.uint16)
    stream = SimpleNamespace(tokens=ids, check_ids=lambda ids: None)
    vocab = SimpleNamespace(
        byte_lengths=np.ones(SHAPE.vocab_size, np.int64), decode=lambda ids: "", eod_id=0
    )
    evaluator = Evaluator(stream, vocab, SHAPE.seq_len, LAST_N, batch)
    look = SecondLook(subject.model().eval(), evaluator.calls, batch, effort, seed)
    assert evaluator.run(look).ours.tokens == tokens
    return look


def refusal(subject, **options):
    look = looked_at(subject, **options)
    with pytest.raises(UserError) as error:
        look.require_blind()
    return str(error.value)


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_a_good_model_passes(changes, tmp_path):
    subject = model_of(tmp_path, changed(*changes))
    for batch, tokens in ((BATCH, TOKENS), (1, 30), (2, 1)):
        looked_at(subject, batch, tokens).require_blind()


@pytest.mark.parametrize("variant", ["lstm", "modern"])
def test_variants_pass(variant):
    looked_at(subject_of(VARIANTS / f"{variant}.py")).require_blind()


# what a model may not do, in batches of the evaluator's size alone
ONLY_HERE = f"if tokens.shape == ({BATCH}, {SHAPE.seq_len}):\n    "
LEAKS = {
    "the next token": "x = x + self.embed(tokens).roll(-1, 1)",
    "a mean over time": "x = x - x.mean(1, keepdim=True)",
    "a token far ahead": "x = x + torch.cat([x[:, 5:], x[:, :5] * 0], 1)",
    "pairs": "x = torch.stack([x[:, ::2] + x[:, 1::2], x[:, 1::2]], 2).flatten(1, 2)",
    "another row": "x = x + x.roll(1, 0)",
    "a mean over rows": "x = x - x.mean(0, keepdim=True)",
    "the row that is later text": "x = x + torch.cat([x[1:], x[:1]])",
    "a look behind the tokens": "x = x + self.embed(tokens._base[:, 1:])",
    "the last target behind the tokens": (
        "x = torch.cat([x[:, :-1], x[:, -1:] + self.embed(tokens._base[:, -1:])], 1)"
    ),
    "targets by another way": (
        "import sys\n"
        "    frame = sys._getframe()\n"
        "    while frame and 'targets' not in frame.f_locals:\n"
        "        frame = frame.f_back\n"
        "    x = x + self.embed(frame.f_locals['targets']) if frame else x"
    ),
    "targets of calls that are counted": (
        "self.calls = getattr(self, 'calls', 0) + 1\n"
        "    x = x + self.embed(tokens).roll(-1, 1) * (self.calls < 4)"
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_a_model_that_sees_more_in_such_batches_alone_is_refused(leak, tmp_path):
    sentence = refusal(model_of(tmp_path, changed((LAST, ONLY_HERE + leak))))
    assert sentence.startswith(
        f"{tmp_path}/model.py: the model sees what it has to predict: in a batch of {BATCH} rows of"
        f" {SHAPE.seq_len} tokens it scores the token behind position "
    )
    assert sentence.endswith("tools/check_model.py looks at it in several") and "\n" not in sentence


def test_what_rounding_moves_once_is_no_leak(tmp_path, monkeypatch):
    look = looked_at(model_of(tmp_path, changed()))
    outputs = look._model.outputs
    calls = []

    def moved_once(tokens):
        calls.append(tokens)
        scale = 1.1 if len(calls) == 1 else 1.0
        return outputs(tokens) * scale

    monkeypatch.setattr(look._model, "outputs", moved_once)
    look.require_blind()
    # the first that moved once more, and each of the others once
    looks = sum(looks for _, looks in look._batches)
    assert len(calls) == looks + 1 and calls[0].shape == calls[1].shape


def test_no_other_check_notices_such_a_model(tmp_path):
    subject = model_of(tmp_path, changed((LAST, ONLY_HERE + LEAKS["the next token"])))
    checks = [check for check in CHECKS if check.name in ("repeatable", "rows", "causal", "loss")]
    assert all(result.is_right for result in run(subject, checks, lambda result: None))


@pytest.mark.parametrize("seed", range(5))
def test_one_row_at_a_time(seed, tmp_path):
    leak = f"if len(x) == 1 and x.shape[1] == {SHAPE.seq_len}:\n    {LEAKS['pairs']}"
    sentence = refusal(model_of(tmp_path, changed((LAST, leak))), batch=1, seed=seed)
    assert "in a batch of 1 row of 24 tokens it" in sentence


def test_no_call_is_sure_not_to_be_looked_at(tmp_path):
    """A model that is blind in the first batch alone is refused as often as another is drawn."""
    leak = (
        "self.calls = getattr(self, 'calls', 0) + 1\n"
        "x = x + self.embed(tokens).roll(-1, 1) * (self.calls % 13 > 1)"
    )
    subject = model_of(tmp_path, changed((LAST, leak)))
    refused = 0
    for seed in range(20):
        look = looked_at(subject, batch=3, seed=seed)
        try:
            look.require_blind()
        except UserError:
            refused += 1
    assert refused >= 12


def test_a_leak_at_few_positions_is_seen_by_a_thorough_look(tmp_path):
    """The next token at one position in 60, and only in batches of the evaluator's size."""
    leak = ONLY_HERE + (
        "is_seen = (tokens % 8 == 3) & (tokens.roll(1, 1) % 8 == 5)\n"
        "    x = x + self.embed(tokens).roll(-1, 1) * is_seen[..., None]"
    )
    subject = model_of(tmp_path, changed((LAST, leak)))
    tokens = 6000
    for seed in range(3):
        refusal(subject, tokens=tokens, seed=seed, effort=THOROUGH)
