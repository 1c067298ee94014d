"""Text from a model: the cache changes nothing, draws are repeatable and confined, and what bad
input is told."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from gpt.architecture.language_model import LanguageModel
from gpt.checkpoint.weights import write_folder
from gpt.config.own_code import OwnCode
from gpt.config.saved import foreign_config
from gpt.config.shape import ModelConfig
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.generate import Context, choose, context_of, generate, require_same_function
from gpt.kernels import attention
from gpt.model import GPT

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = ModelConfig(
    n_layers=2, h_dim=24, mlp_dim=40, n_heads=3, head_dim=6, vocab_size=97, seq_len=16
)


@pytest.fixture(scope="module")
def model():
    """With weights large enough that every token depends on all before it."""
    model = GPT(SHAPE, seed=3).double().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter *= 8
    return model


def full_pass(model, tokens):
    """Logits after `tokens` without a cache, and what is left of them where they are more than the
    model can see."""
    window = tokens if len(tokens) <= SHAPE.seq_len else tokens[-(SHAPE.seq_len // 2) :]
    return model(torch.tensor(window)[None])[0, -1], window


def by_full_passes(model, prompt, count):
    """The likeliest tokens one after another, without a cache."""
    window, ids = list(prompt), []
    for _ in range(count):
        logits, window = full_pass(model, window)
        ids.append(int(logits.argmax()))
        window = [*window, ids[-1]]
    return ids


@pytest.mark.parametrize(
    "prompt", [[5], [5, 9, 11, 3], list(range(20, 36)), list(range(20, 37)), list(range(10, 60))]
)
def test_the_cache_changes_nothing(prompt, model):
    context = Context(model)
    assert list(generate(context, prompt, 40, eod_id=-1, temperature=0)) == by_full_passes(
        model, prompt, 40
    )
    assert context.cut >= 2
    context, window = Context(model), []
    for tokens in [
        prompt,
        *(
            [i]
            for i in torch.randperm(97, generator=torch.Generator().manual_seed(0)).tolist()[:40]
        ),
    ]:
        expected, window = full_pass(model, [*window, *tokens])
        torch.testing.assert_close(context.append(tokens), expected.float(), rtol=1e-6, atol=1e-6)
        assert context.tokens == window


def test_no_token_waits_for_a_plan_of_cudnns(model, monkeypatch):
    """cuDNN's attention plans each shape anew, and with every token the keys have another."""
    attend = torch.nn.functional.scaled_dot_product_attention
    allowed = []
    backends = [
        torch.backends.cuda.cudnn_sdp_enabled,
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.math_sdp_enabled,
    ]

    def spy(*args, **options):
        allowed.append([enabled() for enabled in backends])
        return attend(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    before = [enabled() for enabled in backends]
    list(generate(Context(model), [5, 9], 20, eod_id=-1))
    assert len(allowed) == 20 * SHAPE.n_layers and all(
        each == [False, True, True, True] for each in allowed
    )
    assert [enabled() for enabled in backends] == before and before[0]


def test_the_pass_with_a_cache_is_held_against_the_model(model):
    require_same_function(model)
    require_same_function(GPT(SHAPE, seed=1))
    require_same_function(GPT(dataclasses.replace(SHAPE, seq_len=1), seed=1))
    with torch.no_grad():
        amplifying = GPT(SHAPE, seed=1)
        for parameter in amplifying.parameters():
            parameter *= 30
    require_same_function(amplifying)


def test_a_model_of_changed_code_is_not_sampled_from(model, monkeypatch):
    def sharper(self, x, attend=None):
        q, k, v = self.qkv(x)
        attend = attend or (lambda *qkv: attention.causal_attention(qkv[0] * 5, *qkv[1:]))
        return self.c_proj(attend(q, k, v))

    with monkeypatch.context() as patch:
        patch.setattr("gpt.model.Attention.forward", sharper)
        with pytest.raises(
            UserError,
            match=r"the pass with a cache of gpt/generate.py gives other logits than the model's"
            r" own code \(gpt/model.py\), by \d.*: change it there alike: text would be drawn from",
        ):
            require_same_function(model)
    monkeypatch.delattr(GPT, "embed")
    with pytest.raises(
        UserError, match=r"text cannot be drawn from this model, whose code .*AttributeError: 'GPT'"
    ):
        require_same_function(model)


def test_the_end_of_a_document_ends_the_text(model):
    expected = by_full_passes(model, [5], 40)
    end = expected[7]
    assert (
        list(generate(Context(model), [5], 40, end, temperature=0))
        == expected[: expected.index(end)]
    )


def test_draws_are_repeated_by_their_seed(model):
    texts = [list(generate(Context(model), [5], 40, -1, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def kept_by_hand(logits, temperature, top_k, top_p):
    """{id: probability} of those that may be drawn."""
    weights = np.exp(np.array(logits) / temperature)
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    probabilities = {i: weights[i] / sum(weights[j] for j in order) for i in order}
    kept, total = {}, 0.0
    for i in order:
        if top_p is None or total < top_p:
            kept[i] = probabilities[i]
        total += probabilities[i]
    return {i: p / sum(kept.values()) for i, p in kept.items()}


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, 3, None),
        (1.0, None, 0.8),
        (1.0, 4, 0.9),
        (1.0, 1, None),
        (1.0, None, 1e-9),
        (1.0, 99, 1.0),
    ],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    logits, count = [0.3, 2.1, -1.0, 1.4, 0.9, -3.0], 4000
    expected = kept_by_hand(logits, temperature, top_k, top_p)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        choose(torch.tensor(logits), temperature, top_k, top_p, generator) for _ in range(count)
    ]
    assert set(drawn) <= set(expected)
    for i, p in expected.items():
        assert drawn.count(i) / count == pytest.approx(
            p, abs=4.5 * (p * (1 - p) / count) ** 0.5 + 1e-12
        )


@pytest.mark.parametrize("temperature", [0, 1e-320])
def test_without_any_warmth_the_likeliest_is_taken(temperature):
    assert choose(torch.tensor([0.1, 7.0, 6.9]), temperature, None, None, torch.Generator()) == 1


@pytest.fixture(scope="module")
def export(sample, tmp_path_factory):
    """Untrained weights in a consolidated folder."""
    folder = tmp_path_factory.mktemp("model") / "export"
    vocab = Vocab.load(sample / "tokenizer.model")
    shape = dataclasses.replace(SHAPE, vocab_size=vocab.size)
    write_folder(
        folder,
        GPT(shape, seed=1).state_dict(),
        foreign_config("a test", 7, shape, vocab.fingerprint),
        vocab.model,
        {},
    )
    return folder


def sample_command(export, *options):
    return [
        sys.executable,
        ROOT / "tools/sample.py",
        "--checkpoint_file",
        export / "model.safetensors",
        *options,
    ]


def test_the_command(export, tmp_path, run_command):
    command = sample_command(
        export, "--prompt", "Fellow citizens — 🥐", "--tokens", 40, "--seed", 5, "--top_k", 500
    )
    told_imports = {"OMP_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    done, again = (run_command(command, tmp_path, **told_imports) for _ in range(2))
    assert done.returncode == 0, done.stderr
    assert "torch.nn" in done.stderr and "torch._dynamo" not in done.stderr
    assert (
        done.stdout.startswith("Fellow citizens — 🥐")
        and done.stdout == again.stdout
        and len(done.stdout) > 60
    )
    assert (
        "[40 tokens after a prompt of " in done.stderr
        and "; --tokens asks for more]" in done.stderr
    )
    assert (
        "[the model sees 16 tokens at most; the context went on with its latter half "
        in done.stderr
    )


BAD = [
    (["--tokens", "0"], "--tokens 0: give a positive number"),
    (["--temperature", "-1"], "--temperature -1.0: give 0 or a positive number"),
    (["--temperature", "nan"], "--temperature nan: give 0 or a positive number"),
    (["--top_k", "0"], "--top_k 0: give a positive number"),
    (["--top_p", "0"], "--top_p 0.0: give a number above 0, at most 1"),
    (["--top_p", "1.5"], "--top_p 1.5: give a number above 0, at most 1"),
    (["--seed", "-1"], "--seed -1: give a whole number from 0 on"),
    (["--prompt", "caf\udce9"], "--prompt caf\udce9: give text in UTF-8"),
    (["--device", "cuda:99"], "--device cuda:99 is not to be had here: "),
    (
        ["--checkpoint_file", "."],
        ". is a folder without model.safetensors: consolidate a checkpoint",
    ),
    (
        ["--checkpoint_file", "no/model.safetensors"],
        (
            "no/model.safetensors does not exist: consolidate a checkpoint with `python"
            " tools/zero_to_fp32.py"
        ),
    ),
]


def test_bad_input(export, tmp_path, load_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, sentence in BAD:
        assert (
            load_tool("sample").mistake(*sample_command(export, *options)[2:]).startswith(sentence)
        )


class Mean(torch.nn.Module):
    """Logits of the mean of all embeddings so far: the longer the context, the further off is one
    that was cut."""

    def __init__(self, infinite=False):
        super().__init__()
        self.rows = torch.nn.Embedding(SHAPE.vocab_size, SHAPE.vocab_size)
        torch.nn.init.normal_(self.rows.weight, std=3, generator=torch.Generator().manual_seed(1))
        self.infinite = infinite

    def forward(self, tokens):
        counts = torch.arange(1, tokens.shape[1] + 1)[:, None]
        logits = self.rows(tokens).cumsum(1) / counts
        return logits / (counts != 4) if self.infinite else logits


def of_a_model_file(module):
    code = OwnCode(Path("mean.py"), {"mean.py": b""})
    return LanguageModel(module, code, SHAPE, draw=lambda seed: module)


@pytest.mark.parametrize("prompt", [[5], list(range(20, 36)), list(range(20, 37))])
def test_a_model_without_a_cache_sees_its_whole_context(prompt):
    model = of_a_model_file(Mean())
    context = context_of(model)
    drawn = list(generate(context, prompt, 40, eod_id=-1, temperature=0))
    assert drawn == by_full_passes(model, prompt, 40)
    assert context.cut > 0


def test_logits_that_are_no_numbers():
    context = context_of(of_a_model_file(Mean(infinite=True)))
    with pytest.raises(UserError, match="mean.py: logits after 4 tokens are not finite: tools/"):
        list(generate(context, [5, 6], 5, eod_id=-1))
