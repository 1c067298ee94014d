"""gpt/variants/lstm.py against a loop over the tokens."""

import pytest
import torch
import torch.nn.functional as F
from variants import SHAPE, architecture, batch, trainable

from gpt.variants.lstm import Recurrence

pytestmark = pytest.mark.usefixtures("one_thread")


def loop(factors, terms):
    state = torch.zeros_like(terms[:, 0])
    states = []
    for t in range(terms.shape[1]):
        state = factors[:, t] * state + terms[:, t]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 31, 100])
def test_the_scan_is_the_loop_forwards_and_backwards(length):
    generator = torch.Generator().manual_seed(length)
    shape = (2, length, 3)
    factors = torch.rand(shape, generator=generator, dtype=torch.float64)
    factors[0, length // 2] = 0  # a state that is forgotten
    terms, upstream = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    inputs = factors.requires_grad_(), terms.requires_grad_()
    expected, states = loop(*inputs), Recurrence.apply(*inputs)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-13)
    for ours, theirs in zip(
        torch.autograd.grad(states, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def token_by_token(w, tokens):
    """Hidden states (B, T, C), of one token after the other, with the states of all layers."""
    rows, length = tokens.shape
    states = [0.0] * SHAPE.n_layers
    outputs = []
    for t in range(length):
        x = w["token_embedding.weight"][tokens[:, t]] * SHAPE.h_dim**0.5
        for layer in range(SHAPE.n_layers):
            name = f"blocks.{layer}."
            f, i, o, z = affine(w, name + "lstm.gates", norm(w, name + "ln1", x)).chunk(4, -1)
            states[layer] = f.sigmoid() * states[layer] + i.sigmoid() * z.tanh()
            x = x + affine(w, name + "lstm.c_proj", o.sigmoid() * states[layer].tanh())
            hidden = affine(w, name + "mlp.c_fc", norm(w, name + "ln2", x))
            x = x + affine(w, name + "mlp.c_proj", F.gelu(hidden, approximate="tanh"))
        outputs.append(norm(w, "ln_f", x))
    return torch.stack(outputs, 1)


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def test_a_model_is_its_formulas_token_by_token():
    model = trainable("lstm", torch.float64, spread=0.3)
    tokens, targets = batch()
    expected = token_by_token(dict(model.body.named_parameters()), tokens)
    torch.testing.assert_close(model.body(tokens), expected, rtol=0, atol=1e-11)
    logits = expected @ model.body.head.weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert model(tokens, targets).item() == pytest.approx(loss.item(), rel=1e-9)


def test_what_is_to_come_is_not_seen_and_what_was_is():
    model = trainable("lstm", torch.float64, spread=0.3)
    tokens, _ = batch(rows=1)
    before = model.body(tokens)
    for place in (0, 9, 19):
        changed = tokens.clone()
        changed[0, place] = (tokens[0, place] + 1) % SHAPE.vocab_size
        differs = (model.body(changed) - before)[0].abs().amax(-1) > 1e-12
        assert not differs[:place].any()
        assert differs[place:].all()


def test_channels_begin_with_memories_of_2_up_to_all_steps():
    model = architecture("lstm").build()
    bias = dict(model.initial_weights(0))["body.blocks.1.lstm.gates.bias"]
    f, i, o, z = bias.double().chunk(4)
    steps = 1 / (1 - f.sigmoid())
    assert steps[0].item() == pytest.approx(2)
    assert steps[-1].item() == pytest.approx(SHAPE.seq_len)
    torch.testing.assert_close(steps * i.sigmoid(), torch.ones_like(i))
    assert not o.any() and not z.any()


def test_a_long_memory_survives_16_bit_weights():
    """A gate of 0.998 is 1 in bfloat16, and the state would never fade."""
    tokens, targets = batch()
    losses = [
        trainable("lstm", dtype, spread=0.05)(tokens, targets).item()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_the_gates_of_a_layer_are_four_matrices():
    model = architecture("lstm").build()
    assert model.body.fused_matrices == {f"blocks.{n}.lstm.gates.weight": 4 for n in range(2)}
    width = SHAPE.n_heads * SHAPE.head_dim
    assert model.body.blocks[0].lstm.gates.weight.shape == (4 * width, SHAPE.h_dim)
