"""A user's module under the trainer's own output layer, loss and scores."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.architecture.blocks import compile_blocks, recompute_blocks
from gpt.architecture.own_python import telling
from gpt.config.own_code import OwnCode
from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels.cross_entropy import score_logits
from gpt.kernels.linear_cross_entropy import (
    TokenScores,
    capped,
    linear_cross_entropy,
    score_tokens,
)
from gpt.kernels.triton_shared import statistics_dtype
from gpt.model import Scored, eager_without_gradients

# what a module of a model file may tell of itself
OUTPUT_LAYER = "output_layer"
LOGIT_CAP = "logit_cap"
FLOPS_PER_TOKEN = "flops_per_token"
INITIAL_WEIGHT = "initial_weight"
WITHOUT_GRADIENT = "without_gradient"
FUSED_MATRICES = "fused_matrices"
# under which the user's module stands in the tree
BODY = "body"


class OutputLayer(nn.Module):
    """Logits, loss and scores of hidden states. A module of its own, as gpt.model.Head is; its
    weight may be one that another module has too.

    cap: logits become cap * tanh(logits / cap); None: they stay.
    """

    def __init__(self, weight: nn.Parameter, cap: float | None, kernels: str):
        super().__init__()
        self.weight = weight
        self.cap = cap
        self.kernels = kernels

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, score: bool = False
    ) -> Tensor | TokenScores:
        """As gpt.model.Head's."""
        if targets is None:
            return capped(hidden @ self.weight.t(), self.cap)
        if score:
            return score_tokens(hidden, self.weight, targets, self.kernels, self.cap)
        return linear_cross_entropy(hidden, self.weight, targets, self.kernels, self.cap)


class LanguageModel(nn.Module):
    """A module of a model file in the place of gpt.model.GPT: called alike, returns alike.

    body: the user's module, as gpt.architecture.own_module describes it. shape: that it was built
    for. draw(seed): its module with the values that its parameters begin with.
    Raises UserError where the module is not as described.
    """

    def __init__(
        self,
        body: nn.Module,
        code: OwnCode,
        shape: ModelConfig,
        draw: Callable[[int], nn.Module],
        activation_checkpointing: bool = False,
        kernels: str = "torch",
        compile: str = "none",
    ):
        super().__init__()
        self.config = shape
        self.code = code
        self._draw = draw
        require_only_parameters(body, code)
        weight = output_weight(body, code, shape)
        cap = logit_cap(body, code)
        self.body = body
        self.head = OutputLayer(weight, cap, kernels) if weight is not None else None
        self._cap = cap
        self._kernels = kernels
        self._is_compiled = compile != "none"
        if self._is_compiled:
            compile_blocks(body, code, compile)
        if activation_checkpointing:
            recompute_blocks(body, code)
        # a parameter that several modules have is kept once, under its first name
        self.register_state_dict_post_hook(_leave_out_second_names)
        self.register_load_state_dict_pre_hook(_add_second_names)

    @property
    def fused_matrices(self) -> dict[str, int]:
        """As gpt.model.GPT's. Raises UserError where the module names what is no such matrix."""
        return {f"{BODY}.{name}": n for name, n in fused_matrices(self.body, self.code).items()}

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter in their order, each drawn when it is asked for
        where the module has an `initial_weight`."""
        draw_one: Any = getattr(self.body, INITIAL_WEIGHT, None)
        if draw_one is None:
            for name, parameter in self._draw(seed).named_parameters():
                yield f"{BODY}.{name}", parameter.detach()
            return
        generator = torch.Generator().manual_seed(seed)
        # all names first: a parameter put in its place meanwhile would come again by its second one
        for name, parameter in list(self.body.named_parameters()):
            with telling(self.code, INITIAL_WEIGHT):
                values = draw_one(name, parameter.shape, generator)
            if not torch.is_tensor(values) or values.shape != parameter.shape:
                raise UserError(
                    f"{self.code.path}: {INITIAL_WEIGHT} gives no tensor of the shape"
                    f" {tuple(parameter.shape)} for {name}",
                    mend="return one",
                )
            yield f"{BODY}.{name}", values.float()

    def constants(self) -> str:
        """12 characters that are the same for modules whose buffers are."""
        content = hashlib.sha256()
        for name, buffer in self.body.named_buffers():
            values = buffer.detach().cpu().contiguous()
            content.update(f"{name} {values.dtype} {tuple(values.shape)}\0".encode())
            content.update(values.view(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:12]

    def outputs(self, tokens: Tensor) -> Tensor:
        """What the module makes of tokens (B, T): hidden states (B, T, C), or logits (B, T, V)
        where it names no output layer. Raises UserError where it makes something else."""
        with telling(self.code, "forward"), eager_without_gradients(self._is_compiled):
            output = self.body(tokens)
        self._require_shape(output, tokens)
        return output

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        scored: Scored | None = None,
    ) -> Tensor | TokenScores:
        """As gpt.model.GPT's."""
        return self.from_outputs(self.outputs(tokens), targets, scored)

    def from_outputs(
        self, output: Tensor, targets: Tensor | None = None, scored: Scored | None = None
    ) -> Tensor | TokenScores:
        """What `forward` returns where `outputs` made this."""
        if scored is not None:
            output = output[scored]
            targets = targets[scored] if targets is not None else None
        elif targets is not None:
            output = output.flatten(0, 1)
            targets = targets.flatten()
        if self.head is not None:
            return self.head(output, targets, score=scored is not None)
        return self._from_logits(output, targets, score=scored is not None)

    def _from_logits(
        self, logits: Tensor, targets: Tensor | None, score: bool
    ) -> Tensor | TokenScores:
        """What the head gives, of logits that the module made itself."""
        logits = capped(logits, self._cap)
        if targets is None:
            return logits
        if score:
            return TokenScores(*score_logits(logits, targets, self._kernels))
        return F.cross_entropy(logits.to(statistics_dtype(logits)), targets)

    def _require_shape(self, output: Any, tokens: Tensor) -> None:
        width = self.head.weight.shape[-1] if self.head is not None else self.config.vocab_size
        expected = (*tokens.shape, width)
        if torch.is_tensor(output) and output.shape == expected:
            return
        found = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        kind = "hidden states" if self.head is not None else "logits"
        raise UserError(
            f"{self.code.path}: of tokens {tuple(tokens.shape)} the module makes {found}, not"
            f" {kind} {expected}",
            mend=f"return {kind}, and name the output layer in `{OUTPUT_LAYER}`",
        )


def require_only_parameters(body: nn.Module, code: OwnCode) -> None:
    """Raise UserError where a module has something else than trained fp32 parameters that a run
    would have to keep."""
    names = [name for name, _ in body.named_parameters()]
    if not names:
        raise UserError(f"{code.path}: the module has no parameters", mend="give it some")
    for name, parameter in body.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"{code.path}: its parameter {name} is {parameter.dtype}",
                mend="make it float32: the run's precision is set by its JSON",
            )
        if not parameter.dim():
            raise UserError(
                f"{code.path}: its parameter {name} has no dimension",
                mend="give it the shape (1,)",
            )
        if not parameter.requires_grad:
            raise UserError(
                f"{code.path}: its parameter {name} is not trained",
                mend="make it a buffer, by register_buffer(…, persistent=False)",
            )
    for name, buffer in body.named_buffers():
        if buffer.is_meta:
            raise UserError(
                f"{code.path}: its buffer {name} is made of a parameter, whose values come later",
                mend="compute it in forward",
            )
    kept = body.state_dict(keep_vars=True)
    for name, tensor in kept.items():
        if not isinstance(tensor, nn.Parameter):
            raise UserError(
                f"{code.path}: its buffer {name} would have to be kept with the weights, and"
                " checkpoints hold parameters alone",
                mend="compute it in build, and register_buffer(…, persistent=False)",
            )


def output_weight(body: nn.Module, code: OwnCode, shape: ModelConfig) -> nn.Parameter | None:
    """The weight (V, C) of the module's output layer; None where it makes logits itself."""
    name = getattr(body, OUTPUT_LAYER, None)
    if name is None:
        return None
    mend = f"let `{OUTPUT_LAYER}` be the name of the submodule that makes logits"
    try:
        layer = body.get_submodule(name)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{code.path}: `{OUTPUT_LAYER}` is {name!r}, which is no submodule", mend=mend
        ) from error
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise UserError(f"{code.path}: the output layer {name!r} has no weight (V, C)", mend=mend)
    if weight.shape[0] != shape.vocab_size:
        raise UserError(
            f"{code.path}: the weight of the output layer {name!r} has {weight.shape[0]} rows, and"
            f" the vocabulary {shape.vocab_size} ids",
            mend="let it have shape.vocab_size",
        )
    if getattr(layer, "bias", None) is not None:
        raise UserError(
            f"{code.path}: the output layer {name!r} has a bias, which would not be used",
            mend=f"leave it out, or leave `{OUTPUT_LAYER}` out and return logits",
        )
    return weight


def logit_cap(body: nn.Module, code: OwnCode) -> float | None:
    cap = getattr(body, LOGIT_CAP, None)
    if cap is None:
        return None
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 0 < cap < math.inf:
        raise UserError(f"{code.path}: `{LOGIT_CAP}` is {cap!r}, not a number above 0")
    return float(cap)


def fused_matrices(body: nn.Module, code: OwnCode) -> dict[str, int]:
    """{parameter name: number of equal matrices that lie one under the other in it}, as the module
    tells it."""
    declared = getattr(body, FUSED_MATRICES, None) or {}
    mend = 'let it be a dict such as {"blocks.0.qkv.weight": 3}'
    if not isinstance(declared, dict):
        raise UserError(f"{code.path}: `{FUSED_MATRICES}` is {declared!r}, no dict", mend=mend)
    parameters = dict(body.named_parameters(remove_duplicate=False))
    first_names = {parameter: name for name, parameter in body.named_parameters()}
    fused = {}
    for name, count in declared.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.dim() != 2:
            raise UserError(
                f"{code.path}: `{FUSED_MATRICES}` names {name!r}, which is no parameter of two"
                " dimensions",
                mend=mend,
            )
        if type(count) is not int or count < 1 or parameter.shape[0] % count:
            raise UserError(
                f"{code.path}: `{FUSED_MATRICES}` tells {count!r} equal matrices in {name}, which"
                f" has {parameter.shape[0]} rows",
                mend=mend,
            )
        fused[first_names[parameter]] = count
    return fused


def _second_names(model: nn.Module) -> dict[str, str]:
    """{further name of a parameter: its first one}"""
    first: dict[nn.Parameter, str] = {}
    second = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in first:
            second[name] = first[parameter]
        first.setdefault(parameter, name)
    return second


def _leave_out_second_names(model: nn.Module, state: dict, prefix: str, _: Any) -> None:
    for name in _second_names(model):
        state.pop(prefix + name, None)


def _add_second_names(model: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for name, first in _second_names(model).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])
