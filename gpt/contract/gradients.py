"""Checks of a model's gradients."""

import torch
from torch import Tensor

from gpt.architecture.blocks import blocks_of
from gpt.architecture.language_model import WITHOUT_GRADIENT, LanguageModel
from gpt.contract.subject import Subject, own_name
from gpt.wording import listed

# Steps of a finite difference, in units of a parameter's numbers, one of which must find the
# gradient: one that is too short to meet the kinks of a ReLU, and one that is wide, so that a model
# that computes in part in fp32 does not drown the difference in what it rounds.
STEPS = (1e-6, 1e-2)
WRONG = 0.01
# of the largest derivative: below it a derivative is compared with this
NEGLIGIBLE = 0.05
FD_TOKENS = 16
# of fp32 sums in another order
SAME_LOSS = 1e-5
SAME_GRADIENT = 1e-4


def reach_every_parameter(subject: Subject) -> str:
    """Every parameter gets a gradient, or is named in `without_gradient`."""
    model = subject.model()
    subject.backward(model, subject.batch(4, subject.length))
    allowed = _without_gradient(subject, model)
    missing = []
    for name, parameter in model.named_parameters():
        own = own_name(name)
        if own not in allowed and (parameter.grad is None or not parameter.grad.any()):
            missing.append(own)
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            raise subject.mistake(
                f"the gradient of its parameter {own} is not finite",
                mend="look for a square root, a division or a logarithm near 0",
            )
    if missing:
        raise subject.mistake(
            f"no gradient comes to {listed(missing, shown=3)}",
            mend=f"use them in forward, take them out, or name them in `{WITHOUT_GRADIENT}`",
        )
    named = f", but {listed(sorted(allowed), shown=3)}" if allowed else ""
    return f"to each of {len(dict(model.named_parameters()))}{named}"


def _without_gradient(subject: Subject, model: LanguageModel) -> set[str]:
    names = getattr(model.body, WITHOUT_GRADIENT, ())
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise subject.mistake(
            f"`{WITHOUT_GRADIENT}` is {names!r}", mend="make it a tuple of parameters' names"
        )
    unknown = set(names) - {name for name, _ in model.body.named_parameters()}
    if unknown:
        raise subject.mistake(
            f"`{WITHOUT_GRADIENT}` names {listed(sorted(unknown), shown=3)}, which is no parameter",
            mend="give names as named_parameters() has them",
        )
    return set(names)


def are_right(subject: Subject) -> str:
    """The gradient is the derivative of the loss, in float64, along a random direction for each
    parameter."""
    model = subject.model().double()
    batch = subject.batch(2, min(FD_TOKENS, subject.shape.seq_len))
    subject.backward(model, batch)
    generator = torch.Generator().manual_seed(subject.seed)
    found = {}
    for name, parameter in model.named_parameters():
        scale = parameter.detach().square().mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction = noise * scale
        gradient = parameter.grad
        along = 0.0 if gradient is None else (gradient * direction).sum().item()
        slopes = [_derivative(subject, model, parameter, direction, batch, step) for step in STEPS]
        found[name] = along, min(slopes, key=lambda slope: abs(slope - along))
    largest = max(abs(measured) for _, measured in found.values())
    for name, (along, measured) in found.items():
        if abs(along - measured) > WRONG * max(abs(measured), NEGLIGIBLE * largest):
            raise subject.mistake(
                f"the gradient of its parameter {own_name(name)} is not the derivative of the loss"
                f" ({along:.4g} along a direction, in which the loss rises by {measured:.4g})",
                mend="look at backward functions of its own, detach and no_grad; where that is"
                " meant, as by a straight-through estimator, give --own_gradient",
            )
    return f"within {WRONG:.0%} of finite differences, for each of {len(found)} parameters"


@torch.no_grad()
def _derivative(
    subject: Subject,
    model: LanguageModel,
    parameter: torch.nn.Parameter,
    direction: Tensor,
    batch: Tensor,
    step: float,
) -> float:
    """Of the loss along a direction of one parameter, by central differences at a step and twice
    that."""
    before = parameter.clone()

    def slope(length: float) -> float:
        losses = []
        for sign in (1, -1):
            parameter.copy_(before + sign * length * direction)
            losses.append(subject.loss(model, batch).item())
        parameter.copy_(before)
        return (losses[0] - losses[1]) / (2 * length)

    return (4 * slope(step) - slope(2 * step)) / 3


def add_up(subject: Subject) -> str:
    """The same loss and gradients of a batch at once, and of its rows one after another."""
    batch = subject.batch(4, subject.length)
    whole = subject.model()
    loss = subject.backward(whole, batch)
    for size in (2, 1):
        parts = batch.split(size)
        model = subject.model()
        mean = torch.stack([subject.backward(model, part) for part in parts]).mean()
        _require_same(subject, whole, loss, model, mean, len(parts), f"{len(parts)} parts")
    return "the same loss and gradients from a batch at once, and from 2 and 4 parts of it"


def survive_checkpointing(subject: Subject) -> str:
    """The same loss and gradients where blocks are computed again in the backward pass."""
    plain = subject.model()
    if not blocks_of(plain.body):
        return "not possible: it has no nn.ModuleList, so activation_checkpointing is refused"
    batch = subject.batch(2, subject.length)
    loss = subject.backward(plain, batch)
    model = subject.model(activation_checkpointing=True)
    again = subject.backward(model, batch)
    _require_same(subject, plain, loss, model, again, 1, "activation_checkpointing")
    return f"the same with activation_checkpointing, over {len(blocks_of(plain.body))} blocks"


def _require_same(
    subject: Subject,
    one: LanguageModel,
    loss: Tensor,
    other: LanguageModel,
    other_loss: Tensor,
    parts: int,
    how: str,
) -> None:
    """Raise UserError unless two models have the same loss and gradients, the other's divided by
    parts."""
    if abs(loss - other_loss) > SAME_LOSS * loss.abs():
        raise subject.mistake(
            f"with {how} the loss is {other_loss:.6f}, without {loss:.6f}",
            mend="let forward depend on its tokens alone",
        )
    for (name, parameter), (_, twin) in zip(one.named_parameters(), other.named_parameters()):
        if parameter.grad is None or twin.grad is None:
            continue
        distance = (parameter.grad - twin.grad / parts).norm()
        # an absolute part: the gradient of a key's bias is zero but for rounding
        if distance > SAME_GRADIENT * parameter.grad.norm() + 1e-7:
            raise subject.mistake(
                f"with {how} the gradient of {own_name(name)} is another",
                mend="let forward depend on its tokens alone",
            )
