"""The frozen configuration of a run."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from gpt.config import deepspeed_keys
from gpt.config.batch import BatchPlan
from gpt.config.options import Options
from gpt.config.schedule import CosineSchedule
from gpt.config.shape import SHAPE, ModelConfig


@dataclass(frozen=True)
class Config:
    """A resolved run. `deepspeed` is what DeepSpeed gets, the "gpt" block and our own schedule
    taken out."""

    name: str  # the JSON file's name without its ending
    options: Options
    model: ModelConfig
    batch: BatchPlan
    # None: DeepSpeed's own scheduler, or a constant learning rate
    schedule: CosineSchedule | None
    deepspeed: dict
    sources: dict  # {dotted path of a value: where it comes from}
    notices: tuple = ()  # what was decided otherwise than asked, and why

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16: the type that weights and activations have in the hot loop."""
        return next((name for name in ("fp16", "bf16") if self.deepspeed[name]["enabled"]), "fp32")

    @property
    def zero_stage(self) -> int:
        return self.deepspeed["zero_optimization"]["stage"]

    @property
    def moments(self) -> int:
        """Numbers per parameter that the optimizer keeps beside the weight."""
        if self.deepspeed["optimizer"]["type"] != "SGD":
            return 2
        return 1 if self.deepspeed["optimizer"]["params"].get("momentum") else 0

    @property
    def fp32_sums(self) -> bool:
        """Whether 16-bit gradients of a step's micro-batches are summed in fp32."""
        return (
            self.deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32"
            and self.precision != "fp32"
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.options.run_dir or f"runs/{self.name}")

    def without_fp16(self, reason: str) -> "Config":
        """The same run in fp32, with a notice that says why."""
        fp32 = {**self.deepspeed, "fp16": {**self.deepspeed["fp16"], "enabled": False}}
        return dataclasses.replace(
            self,
            deepspeed=fp32,
            sources={**self.sources, "fp16.enabled": f"derived: {reason}"},
            notices=(*self.notices, reason),
        )

    def tree(self) -> dict:
        """The run as one JSON tree of resolved values, which resolves to this Config again."""
        ours = (
            {"type": deepspeed_keys.COSINE, "params": dataclasses.asdict(self.schedule)}
            if self.schedule
            else None
        )
        gpt = {
            **dataclasses.asdict(self.options),
            **{name: getattr(self.model, name) for name in SHAPE},
        }
        return {**self.deepspeed, **({"scheduler": ours} if ours else {}), "gpt": gpt}

    def values(self) -> list:
        """(dotted path, value, source) of every resolved value, in the order of the tree."""
        return [
            (path, value, self.sources.get(path, "default")) for path, value in leaves(self.tree())
        ]

    @property
    def fingerprint(self) -> str:
        """The same for two runs of the same configuration, whatever their values' sources."""
        text = json.dumps([self.precision, self.tree()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict:
        """Plain values for config.yaml: all that a reader needs to know what was run, and where
        each value is from."""
        batch = dataclasses.asdict(self.batch)
        return {
            "name": self.name,
            "precision": self.precision,
            "model": dataclasses.asdict(self.model),
            "batch": {"global_size": batch.pop("train_batch_size"), **batch},
            "run": self.tree(),
            "sources": {path: source for path, _, source in self.values()},
        }


def leaves(tree, path=""):
    """(dotted path, value) of everything in a tree that is no block."""
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from leaves(value, where)
        else:
            yield where, value
