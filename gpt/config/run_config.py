"""The frozen configuration of a run."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.config.batch import BatchPlan
from gpt.config.optimizer_keys import LION
from gpt.config.options import GPT_KEYS, Options
from gpt.config.own_code import OwnCode
from gpt.config.schedule import OwnSchedule
from gpt.config.shape import ModelConfig


@dataclass(frozen=True)
class Config:
    """A resolved run. `deepspeed` is what DeepSpeed gets, the "gpt" block and our own schedule
    taken out."""

    name: str  # the JSON file's name without its ending
    options: Options
    model: ModelConfig
    batch: BatchPlan
    # None: DeepSpeed's own scheduler, or a constant learning rate
    schedule: OwnSchedule | None
    deepspeed: dict[str, Any]
    # of the model; None: the GPT of gpt/model.py
    model_code: OwnCode | None
    # of the optimizer; None: deepspeed["optimizer"] tells it
    optimizer_code: OwnCode | None
    sources: dict[str, str]  # {dotted path of a value: where it comes from}
    notices: tuple[str, ...] = ()  # what was decided otherwise than the file says, and why

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16: the type that weights and activations have in the hot loop."""
        for name in ("fp16", "bf16"):
            if self.deepspeed[name]["enabled"]:
                return name
        return "fp32"

    @property
    def zero_stage(self) -> int:
        """0 to 3: how much of the run's state is shared out among its ranks."""
        return self.deepspeed["zero_optimization"]["stage"]

    @property
    def moments(self) -> int:
        """Numbers per parameter that the optimizer keeps beside the weight; of one of the user's
        own they are taken to be two."""
        optimizer = self.deepspeed.get("optimizer")
        if optimizer is None:
            return 2
        if optimizer["type"] == "SGD":
            return 1 if optimizer["params"].get("momentum") else 0
        # of Muon one is kept, and one is made beside it in every step
        return 1 if optimizer["type"] == LION else 2

    @property
    def fp32_sums(self) -> bool:
        """Whether 16-bit gradients of a step's micro-batches are summed in fp32."""
        types = self.deepspeed.get("data_types", {})
        return self.precision != "fp32" and types.get("grad_accum_dtype") == "fp32"

    @property
    def own_code(self) -> tuple[OwnCode, ...]:
        """All files of the user's own that the run takes part of itself from."""
        codes = (self.model_code, self.optimizer_code)
        return tuple(code for code in codes if code is not None)

    @property
    def model_digest(self) -> str | None:
        """The same for runs that compute with the same model file, options and shape; None of the
        GPT."""
        if self.model_code is None:
            return None
        return digest_of_model(self.model_code, self.options.model_options, self.model)

    @property
    def run_dir(self) -> Path:
        """The folder that the run is kept in."""
        return Path(self.options.run_dir or f"runs/{self.name}")

    def without_fp16(self, reason: str) -> "Config":
        """The same run in fp32, with a notice that says why; a throughput that was measured in
        another precision is not its own, but for one that the command line gives to the run."""
        fp16 = {**self.deepspeed["fp16"], "enabled": False}
        # without these sums are in the run's precision, fp32
        deepspeed = {name: value for name, value in self.deepspeed.items() if name != "data_types"}
        options = self.options
        notices = [*self.notices, reason]
        is_own = self.sources.get("gpt.tokens_per_second") == "command line"
        if is_own and options.reference_precision is not None:
            options = dataclasses.replace(options, reference_precision="fp32")
        if options.tokens_per_second is not None and options.reference_precision != "fp32":
            options = dataclasses.replace(
                options,
                tokens_per_second=None,
                reference_flops_per_token=None,
                reference_model=None,
                reference_precision=None,
            )
            notices.append("no reference hours: tokens_per_second was measured in fp16")
        return dataclasses.replace(
            self,
            options=options,
            deepspeed={**deepspeed, "fp16": fp16},
            sources={**self.sources, "fp16.enabled": f"derived: {reason}"},
            notices=tuple(notices),
        )

    def tree(self) -> dict[str, Any]:
        """The run as one JSON tree of resolved values, which resolves to this Config again."""
        tree = dict(self.deepspeed)
        if self.schedule is not None:
            params = dataclasses.asdict(self.schedule)
            tree["scheduler"] = {"type": self.schedule.kind, "params": params}
        gpt = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.options)}
        tree["gpt"] = {name: gpt[name] for name in GPT_KEYS}
        return tree

    def values(self) -> list[tuple[str, Any, str]]:
        """(dotted path, value, source) of every resolved value, in the order of the tree."""
        return [
            (path, value, self.sources.get(path, "default")) for path, value in leaves(self.tree())
        ]

    @property
    def fingerprint(self) -> str:
        """The same for two runs of the same configuration, whatever their values' sources."""
        told: list[Any] = [self.precision, self.tree()]
        told += [code.hash for code in self.own_code]
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of_model(code: OwnCode, options: Mapping[str, Any] | None, shape: ModelConfig) -> str:
    """12 characters that tell models of model files apart."""
    text = json.dumps([code.hash, options or {}, dataclasses.asdict(shape)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree that is no block."""
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from leaves(value, where)
        else:
            yield where, value


def value_at(tree: Any, path: str) -> Any:
    """The value at a dotted path of blocks, None where there is none."""
    value = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
