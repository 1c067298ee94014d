"""Checks of what a model makes of tokens: each position of those up to it, each row by itself, and
of the same tokens the same."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gpt.architecture.language_model import LanguageModel
from gpt.contract.building import no_side_effects, require_same_buffers
from gpt.contract.subject import Subject, difference, own_name
from gpt.errors import UserError
from gpt.wording import listed

# Of the largest output. What fp32 rounds away by other means, as in a Fourier transform, is below;
# a mean over 512 tokens is far above.
SAME = 1e-5
# nats: logits with a standard deviation s cost about s^2 / 2 beyond a uniform guess
LOSS_ABOVE = 1.0
LOSS_BELOW = 0.1
# bf16 keeps 8 bits, so that a sum of independent errors over some dozens of layers stays below
BF16_OUTPUTS = 0.1
BF16_LOSS = 0.05
# forward passes at a run's start: parameters times tokens of a row that take about a second
START_PRODUCTS = 1 << 34
LEAST_TOKENS = 32
START_TOKENS = 512
# windows at a time, and borders in a window at most, where later tokens are changed
ROWS = 16
MOST_BORDERS = 512


def makes_outputs(subject: Subject) -> str:
    """Hidden states or logits of the right shape, finite, for several B and T, without changing
    anything of the process."""
    model = subject.model(subject.first_weights)
    names = dict(model.named_parameters()).keys()
    longest = subject.shape.seq_len
    shapes = [(1, longest), (2, longest), (3, max(1, longest // 2)), (2, 2), (1, 1)]
    for rows, length in shapes:
        tokens = subject.batch(rows, length)[:, :-1]
        model.train(rows * length > 1)  # one token at a time is what sampling may ask for
        what = f"forward of tokens {tuple(tokens.shape)}"
        with no_side_effects(subject, what), subject.running(), torch.no_grad():
            output = model.outputs(tokens)
        if not output.isfinite().all():
            raise subject.mistake(
                f"{what} makes numbers that are not finite, with the first weights",
                mend=f"look at {_first_nonfinite(subject, model, tokens)}",
            )
    made = set(dict(model.named_parameters())) - names
    if made:
        raise subject.mistake(
            f"forward makes the parameter {own_name(min(made))}, which no optimizer would know",
            mend="make it in build",
        )
    kind = "hidden states" if model.head is not None else "logits"
    return f"{kind} for up to 3 rows and {longest} tokens, all finite"


def _first_nonfinite(subject: Subject, model: LanguageModel, tokens: Tensor) -> str:
    """The first of its modules with such an output."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = []
    for name, module in model.body.named_modules():
        hook = module.register_forward_hook(lambda _, __, out, name=name: look(name, out))
        hooks.append(hook)
    subject.outputs(model, tokens)
    for hook in hooks:
        hook.remove()
    return f"its submodule {found[0]!r}" if found and found[0] else "its forward"


def is_repeatable(subject: Subject) -> str:
    """The same outputs of the same tokens: nothing random, nothing kept from the call before."""
    require_repeatable(subject, subject.model(), subject.batch(2, subject.length)[:, :-1])
    return "the same outputs again, and after other tokens"


def require_repeatable(subject: Subject, model: LanguageModel, tokens: Tensor) -> None:
    first = subject.outputs(model, tokens)
    dropping = [
        name
        for name, module in model.body.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    if dropping:
        raise subject.mistake(
            f"it drops activations at random ({listed(dropping, shown=3)})",
            mend="take dropout out: runs are exactly repeatable, and a corpus is read once",
        )
    with subject.running(), torch.no_grad():
        before = torch.get_rng_state()
        model.outputs(tokens)
        has_drawn = not torch.equal(before, torch.get_rng_state())
    if has_drawn:
        raise subject.mistake(
            "forward draws random numbers, or seeds them",
            mend="take that out: runs are exactly repeatable",
        )
    others = subject.batch(1, tokens.shape[1], seed=1)
    subject.outputs(model, others[:, :-1])
    if not torch.equal(first, subject.outputs(model, tokens)):
        raise subject.mistake(
            "other outputs for the same tokens after a call with other tokens",
            mend="keep nothing from one call to the next: batches are independent",
        )


def is_causal(subject: Subject) -> str:
    """Outputs do not change with later tokens, in train and in eval mode."""
    longest = subject.shape.seq_len
    borders = _spread(longest, MOST_BORDERS)
    model = subject.model()
    for mode in (True, False):
        require_causal(subject, model.train(mode), longest, borders)
    return f"outputs know nothing of later tokens, at {len(borders)} of {longest} borders"


def _spread(length: int, most: int) -> list[int]:
    """Positions from 1 to a length, all or so many of them, at no regular distance."""
    if length <= most:
        return list(range(1, length + 1))
    return sorted({max(1, index * length // most + index % 3 - 1) for index in range(most)})


def require_causal(
    subject: Subject, model: LanguageModel, length: int, borders: Sequence[int]
) -> None:
    """Raise UserError unless outputs before each border stay as they are where the tokens from
    there on are others. A border equal to the length: only the last target is another.

    Rows must be independent: each row of a batch is changed from another border on.
    """
    mode = "train" if model.training else "eval"
    window = subject.batch(1, length)
    for start in range(0, len(borders), ROWS):
        part = borders[start : start + ROWS]
        batch = window.repeat(len(part), 1)
        before = subject.outputs(model, batch[:, :-1])
        changed = _other_from(subject, batch, part)
        after = subject.outputs(model, changed[:, :-1])
        for row, border in enumerate(part):
            kept, moved = before[row, :border], after[row, :border]
            if difference(kept, moved) <= SAME:
                continue
            distances = (kept - moved).abs().amax(-1)
            position = int((distances > SAME * kept.abs().max()).nonzero()[-1])
            raise subject.mistake(
                f"the model sees the future: with other tokens from position {border} on, its"
                f" output at position {position} is another (in {mode} mode)",
                mend="let each position depend on itself and those before it alone: look at masks,"
                " shifts, and means or norms over the time axis",
            )


def _other_from(subject: Subject, batch: Tensor, borders: Sequence[int]) -> Tensor:
    """The batch with other ids in each row from its border on."""
    shift = subject.batch(1, batch.shape[1] - 1, seed=1) % (subject.shape.vocab_size - 1) + 1
    is_later = torch.arange(batch.shape[1]) >= torch.tensor(borders)[:, None]
    return (batch + shift * is_later) % subject.shape.vocab_size


def rows_are_independent(subject: Subject) -> str:
    """A row's outputs do not depend on the rows beside it."""
    model = subject.model()
    for mode in (True, False):
        require_independent_rows(subject, model.train(mode), subject.length)
    return "a row's outputs are the same beside other rows, and alone"


def require_independent_rows(subject: Subject, model: LanguageModel, length: int) -> None:
    tokens = subject.batch(3, length)[:, :-1]
    first = subject.outputs(model, tokens)[:1]
    others = torch.cat([tokens[:1], subject.batch(2, length, seed=2)[:, :-1]])
    for beside, words in ((others, "beside other rows"), (tokens[:1], "alone in its batch")):
        if difference(first, subject.outputs(model, beside)[:1]) > SAME:
            mode = "train" if model.training else "eval"
            raise subject.mistake(
                f"rows of a batch are mixed: a row's outputs are others {words} (in {mode} mode)",
                mend="let no norm, mean or reshape go over the batch",
            )


def is_blind_to_targets(subject: Subject) -> str:
    """The loss that training takes is the cross-entropy of the logits that are made without
    targets, and near a uniform guess at the start."""
    model = subject.model(subject.first_weights)
    batch = subject.batch(4, subject.length)
    targets = batch[:, 1:].flatten()
    with subject.running(), torch.no_grad():
        logits = model(batch[:, :-1].clone())
    expected = cross_entropy(logits.double().flatten(0, 1), targets).item()
    loss = subject.loss(model, batch).item()
    uniform = math.log(subject.shape.vocab_size)
    if not math.isfinite(loss):
        raise subject.mistake(
            f"the loss at the start is {loss}", mend="look at the first weights, and at divisions"
        )
    if abs(loss - expected) > 1e-3 * max(1.0, expected):
        raise subject.mistake(
            f"the loss at the start is {loss:.3f} where targets are near, and {expected:.3f} by its"
            " logits of the same tokens without targets",
            mend="let it depend on tokens alone",
        )
    if loss > uniform + LOSS_ABOVE:
        raise subject.mistake(
            f"the loss at the start is {loss:.2f}, and a uniform guess's {uniform:.2f}, ln of the"
            f" vocabulary's {subject.shape.vocab_size} ids",
            mend="begin with a smaller output layer, as with a standard deviation of 0.02",
        )
    if loss < uniform - LOSS_BELOW:
        raise subject.mistake(
            f"the loss on random tokens is {loss:.2f} at the start, below the {uniform:.2f} that"
            " they allow",
            mend="look at where it sees the targets",
        )
    return f"{loss:.3f} at the start, a uniform guess's is {uniform:.3f}; targets are not seen"


def is_near_in_bf16(subject: Subject) -> str:
    """With weights in bf16, as a run in bf16 has them, much the same."""
    batch = subject.batch(2, subject.shape.seq_len)
    exact = subject.model()
    rounded = subject.model()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    with subject.running(), torch.no_grad():
        expected = exact.outputs(batch[:, :-1])
        output = rounded.outputs(batch[:, :-1])
    if output.dtype != torch.bfloat16:
        raise subject.mistake(
            f"in bf16 its outputs are {output.dtype}",
            mend="return the dtype of the parameters; what buffers and constants make stays fp32"
            " without .to(x.dtype)",
        )
    with subject.running(), torch.no_grad():
        losses = [model(batch[:, :-1], batch[:, 1:]).item() for model in (exact, rounded)]
    error = ((output.float() - expected).norm() / expected.norm()).item()
    distance = abs(losses[0] - losses[1])
    # not below: a NaN is neither
    if not (error <= BF16_OUTPUTS and distance <= BF16_LOSS):
        raise subject.mistake(
            f"in bf16 its outputs differ by {error:.0%} from those in fp32, and its loss by"
            f" {distance:.3f}",
            mend="compute angles, norms and long sums in fp32 inside of forward",
        )
    return f"outputs within {error:.1%} of fp32's, loss within {distance:.4f}"


def require_sound(subject: Subject) -> str | None:
    """What a run's start looks at, in about a second: that the model sees neither later tokens nor
    other rows, and repeats itself, with tokens as many as the time allows. Raises UserError;
    returns a sentence where nothing of it could be looked at.

    On the CPU, so that no device is taken for a model that is refused; one that computes on a GPU
    alone is not looked at.
    """
    require_same_buffers(subject)
    parameters = subject.architecture.parameters()
    length = min(subject.shape.seq_len, START_TOKENS, START_PRODUCTS // parameters)
    advice = "tools/check_model.py looks at it in a small shape"
    if length < min(LEAST_TOKENS, subject.shape.seq_len):
        return (
            f"whether {subject.code} sees later tokens is not looked at: with {parameters:,}"
            f" parameters it would take long on the CPU; {advice}"
        )
    model = subject.model()
    try:
        subject.outputs(model, subject.batch(1, length)[:, :-1])
    except UserError as error:
        if not torch.cuda.is_available():
            raise
        return f"whether {subject.code} sees later tokens is not looked at ({error}); {advice}"
    require_repeatable(subject, model, subject.batch(2, length)[:, :-1])
    require_independent_rows(subject, model, length)
    borders = max(1, min(MOST_BORDERS, START_PRODUCTS // (parameters * length)))
    require_causal(subject, model, length, _spread(length, borders))
    return None
