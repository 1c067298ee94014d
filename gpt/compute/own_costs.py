"""What the model of a model file costs, measured on the module that the file builds.

Parameters are counted on it. FLOPs and activations come from a training pass on paper
(gpt.compute.paper); a module that looks at values, so that there is none, makes a pass on the CPU.
"""

import json
import re
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gpt.architecture.architecture import Architecture, set_parameter
from gpt.architecture.blocks import blocks_of
from gpt.architecture.language_model import FLOPS_PER_TOKEN, LanguageModel, logit_cap
from gpt.architecture.own_python import telling
from gpt.compute import paper
from gpt.compute.hardware import DTYPES
from gpt.config.own_code import OwnCode
from gpt.config.run_config import Config
from gpt.config.shape import ModelConfig
from gpt.errors import UserError, in_brief

T = TypeVar("T")
# in messages of torch
_OF_META = re.compile(r"\bmeta\b", re.IGNORECASE)
# by which a declared figure may lie below the counted one
TOLERANCE = 0.02
# of a batch that is counted
ROWS = 2
# of the GPT's share of operations beside matrix products, from where on FLOPs tell too little
MOST_OTHERS = 5.0


class UnmeasurableError(UserError):
    """No training pass of a module can be made on paper, and none on a CPU."""


class Flops(NamedTuple):
    """FLOPs per token of a model file's module."""

    counted: int | None  # None: no pass can be made here
    declared: int | None  # by the module itself

    @property
    def used(self) -> int:
        return max(figure for figure in self if figure is not None)


class OwnCosts:
    """A `gpt.compute.costs.Costs`. Raises UserError where the file cannot build its module.

    precision: of the run.
    """

    def __init__(self, architecture: Architecture, precision: str = "fp32"):
        assert architecture.code is not None
        self.shape: ModelConfig = architecture.shape
        self._architecture = architecture
        self._code: OwnCode = architecture.code
        self._precision = precision
        # why no pass can be made on paper
        self._without_paper: str | None = None
        self._kept_by: dict[tuple[str, bool, int], paper.Kept] = {}
        model = self._build(checkpointing=False)
        blocks = blocks_of(model.body)
        self.parameters = _count(model)
        self.blocks = len(blocks)
        self.block_parameters = max(map(_count, blocks), default=self.parameters)
        head = model.head
        self.output_width = None if head is None else head.weight.shape[1]
        self.is_capped = logit_cap(model.body, self._code) is not None
        self._declared = _declared_flops(model.body, self._code)

    @property
    def flops_per_token(self) -> int:
        return self.flops.used

    @property
    def flops_counted(self) -> int | None:
        return self.flops.counted

    @cached_property
    def flops(self) -> Flops:
        """Raises UserError where the module declares less than it takes, or declares nothing and
        cannot be counted."""
        try:
            done = self._operations
        except UnmeasurableError:
            if self._declared is None:
                raise
            return Flops(None, self._declared)
        counted = -(-done.products // (ROWS * self.shape.seq_len))
        declared = self._declared
        if declared is not None and declared < (1 - TOLERANCE) * counted:
            raise UserError(
                f"{self._code.path}: `{FLOPS_PER_TOKEN}` is {declared:,}, and its matrix products"
                f" take {counted:,} per token",
                mend="leave it out, or declare what they take",
            )
        return Flops(counted, declared)

    @cached_property
    def _operations(self) -> paper.Operations:
        return self._by_pass(paper.operations, self._precision, False, ROWS)

    @cached_property
    def notices(self) -> list[str]:
        """Why its FLOPs may not tell what it costs, a sentence each. Raises UserError as `flops`
        does."""
        if self.flops.counted is None:
            return []
        sentences = []
        if self._without_paper is not None:
            sentences.append(
                f"{self._code.path}: its FLOPs are those of a pass on the CPU, as none can be made"
                f" without values ({self._without_paper})"
            )
        tokens = torch.zeros(ROWS, self.shape.seq_len, dtype=torch.int64, device="meta")
        gpt = paper.operations(Architecture(self.shape).build(), tokens)
        own = self._operations
        times = own.others * gpt.products / (max(own.products, 1) * gpt.others)
        if times > MOST_OTHERS:
            sentences.append(
                f"{self._code.path}: what it computes beside matrix products (mostly"
                f" {own.mostly}) is {times:.1f} times the GPT's share, so its FLOPs understate its"
                " cost: compare at equal time (tools/throughput.py --write_config)"
            )
        return sentences

    def activations(self, micro_size: int, precision: str, checkpointing: bool) -> int | None:
        """As gpt.compute.costs.Costs'. Raises UserError as `flops` does."""
        if checkpointing and not self.blocks:
            return None
        try:
            one, two = (self._kept(precision, checkpointing, rows) for rows in (1, 2))
        except UnmeasurableError:
            if self._declared is None:
                raise
            return None
        per_row = two - one
        of_any_batch = max(0, one - per_row - self._of_output_layer())
        return micro_size * per_row + of_any_batch

    def _kept(self, precision: str, checkpointing: bool, rows: int) -> int:
        kept = self._kept_by_pass(precision, checkpointing, rows)
        if not checkpointing:
            return kept.total
        return kept.total + self._kept_by_pass(precision, False, rows).in_block

    def _of_output_layer(self) -> int:
        """Bytes of its weight's gradient, which belongs to the logits."""
        return 4 * self.shape.vocab_size * (self.output_width or 0)

    def _kept_by_pass(self, precision: str, checkpointing: bool, rows: int) -> paper.Kept:
        def measure(model: LanguageModel, tokens: Tensor) -> paper.Kept:
            return paper.kept(model, tokens, blocks_of(model.body), checkpointing)

        key = precision, checkpointing, rows
        if key not in self._kept_by:
            self._kept_by[key] = self._by_pass(measure, *key)
        return self._kept_by[key]

    def _by_pass(
        self,
        measure: Callable[[LanguageModel, Tensor], T],
        precision: str,
        checkpointing: bool,
        rows: int,
    ) -> T:
        """What is measured on the model and so many rows of tokens."""
        size = rows, self.shape.seq_len
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.shape.vocab_size, size, generator=generator)
        # buffers keep their precision
        dtype = DTYPES[precision]
        model = self._build(checkpointing).to("meta")
        for name, parameter in list(model.named_parameters()):
            set_parameter(model, name, nn.Parameter(parameter.to(dtype)))
        try:
            with telling(self._code, f"a training pass in {precision}"):
                return measure(model, tokens.to("meta"))
        except UserError as error:
            if not _lacks_values(error.__cause__):
                raise
            assert error.__cause__ is not None
            self._without_paper = in_brief(error.__cause__)
        # with the weights that training begins with
        model = self._build(checkpointing)
        for name, values in model.initial_weights(seed=0):
            set_parameter(model, name, nn.Parameter(values.to(dtype)))
        try:
            with telling(self._code, f"a training pass in {precision} on a CPU"):
                return measure(model, tokens)
        except UserError as error:
            if error.__cause__ is None:
                raise
            raise UnmeasurableError(
                f"{error.what}, so what it costs is not known",
                mend=f"mend it; of a model for GPUs alone declare `{FLOPS_PER_TOKEN}`",
            ) from error

    def _build(self, checkpointing: bool) -> LanguageModel:
        model = self._architecture.build(activation_checkpointing=checkpointing)
        assert isinstance(model, LanguageModel)
        return model


# {what a model is: its costs}, of this process
_measured: dict[tuple, OwnCosts] = {}


def own_costs_of(config: Config) -> OwnCosts:
    """Those of a run's model file. Measured once in a process."""
    code = config.model_code
    assert code is not None
    options = json.dumps(config.options.model_options, sort_keys=True)
    key = code.path, code.hash, config.model, options, config.precision
    if key not in _measured:
        _measured[key] = OwnCosts(Architecture.of(config), config.precision)
    return _measured[key]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _declared_flops(body: nn.Module, code: OwnCode) -> int | None:
    declared = getattr(body, FLOPS_PER_TOKEN, None)
    if declared is None:
        return None
    if isinstance(declared, bool) or not isinstance(declared, int) or declared < 1:
        raise UserError(
            f"{code.path}: `{FLOPS_PER_TOKEN}` is {declared!r}, not a whole number above 0"
        )
    return declared


def _lacks_values(error: BaseException | None) -> bool:
    """Whether a pass failed because tensors on torch's meta device have no values."""
    return isinstance(error, NotImplementedError) or _OF_META.search(str(error)) is not None
