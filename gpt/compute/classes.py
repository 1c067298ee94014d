"""Compute classes: the steps that some hours of one device allow, and the run's JSON that says so.

Everything is compared at equal compute: a class is a number of hours, a model's throughput on the
reference device turns it into tokens, and its batch into optimiser steps.
"""

import copy
import json
from typing import NamedTuple

from gpt.config.optimizer_keys import COSINE, OWN_SCHEDULERS
from gpt.config.shape import ModelConfig, load_presets
from gpt.errors import UserError

HOURS = (3, 6, 12, 24, 48, 96, 192, 384)
# The shipped classes: hours -> preset. Batches are larger from 24 hours on.
SHIPPED: dict[float, str] = {6: "small", 12: "small", 24: "small", 48: "medium", 96: "medium"}
# Tokens per second that the Languini Kitchen publishes for its GPT in fp16 (arXiv 2309.11197), by
# GPU and preset.
REFERENCE = {
    "3090": {"mini": 238719, "small": 55416, "medium": 16618, "large": 7058},
    "4090": {"mini": 381174, "small": 88701, "medium": 29188, "large": 12379},
    "A100": {"mini": 562594, "small": 135107, "medium": 47851, "large": 27713},
}
# Micro batches at most, in an RTX 3090's 24 GB, by preset.
MICRO_BATCH = {"mini": 32, "tiny": 32, "small": 32}
MICRO_BATCH_OF_LARGER = 8
# characters up to which a block of the JSON stands on one line
LINE = 110


def batch_of(hours: float) -> int:
    """Sequences per optimiser step of the shipped classes."""
    return 128 if hours < 24 else 256


def steps_of(hours: float, tokens_per_second: float, tokens_per_step: int) -> int:
    """Optimiser steps nearest to so many hours at a throughput."""
    return round(hours * 3600 * tokens_per_second / tokens_per_step)


def name_of(hours: float) -> str:
    return f"{hours:g}h"


def shipped_tree(preset: str, train_batch_size: int) -> dict:
    """What the shipped classes of a preset have in common: a run's JSON that lacks its steps and
    throughput."""
    return {
        "train_batch_size": train_batch_size,
        "train_micro_batch_size_per_gpu": MICRO_BATCH.get(preset, MICRO_BATCH_OF_LARGER),
        "gradient_clipping": 0.0,
        "fp16": {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 2000,
            "hysteresis": 1,
            "min_loss_scale": 1,
        },
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": 50000000,
            "allgather_bucket_size": 50000000,
        },
        "optimizer": {
            "type": "Adam",
            "params": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        },
        "scheduler": {
            "type": COSINE,
            "params": {"max_lr": 6e-4, "min_lr": 6e-6, "warmup_steps": 200, "decay_steps": 1000},
        },
        "gpt": {
            "preset": preset,
            "vocab_size": 16384,
            "seq_len": 512,
            "data_root": "data/books",
            "max_train_steps": 1000,
            "tokens_per_second": 1,
            "reference_flops_per_token": 1,
            "reference_precision": "fp16",
            "eval_every": 500,
            "final_eval": True,
            "log_terminal_every": 100,
            "log_grads_every": 1000,
            "log_ckpt_every": 1000,
            "logger_type": "tb",
        },
    }


class Rate(NamedTuple):
    """A throughput, and what it was measured for."""

    tokens_per_second: float
    flops_per_token: int  # of the model
    precision: str  # fp32, fp16 or bf16
    model: str | None = None  # digest of a model file's; None: the GPT


def class_tree(tree: dict, hours: float, rate: Rate, micro_size: int, seq_len: int) -> dict:
    """The run's JSON `tree` made into a class: micro batch, steps, decay, throughput and precision
    are set.

    All else is kept but a run's own folder. The micro batch is the largest that a GPU of this kind
    shall take; the accumulation is left to the number of GPUs.

    Raises UserError where the class is no step long, the micro batch does not divide the batch, or
    the learning rate does not follow the steps.
    """
    batch = tree["train_batch_size"]
    if batch % micro_size:
        raise UserError(
            f"the micro batch {micro_size} does not divide train_batch_size {batch} of the class"
            f" {name_of(hours)}",
            mend="choose another of the two",
        )
    scheduler = tree.get("scheduler", {}).get("type")
    if scheduler not in OWN_SCHEDULERS:
        own = " or ".join(OWN_SCHEDULERS)
        raise UserError(
            f"the class {name_of(hours)} needs the scheduler {own}, whose decay_steps follow the"
            f" class; the config's is {scheduler}",
            mend=f"give a config with {own}",
        )
    tokens_per_step = batch * seq_len
    steps = steps_of(hours, rate.tokens_per_second, tokens_per_step)
    if steps < 1:
        raise UserError(
            f"the class {name_of(hours)} is less than one step of {tokens_per_step:,} tokens at"
            f" {rate.tokens_per_second:,} tokens/s",
            mend="give more --hours, or a smaller --train_batch_size",
        )
    tree = copy.deepcopy(tree)
    tree.pop("gradient_accumulation_steps", None)
    tree = {"train_batch_size": batch, **tree, "train_micro_batch_size_per_gpu": micro_size}
    tree["scheduler"]["params"]["decay_steps"] = steps
    # the folder of another run
    tree["gpt"].pop("run_dir", None)
    tree["gpt"]["max_train_steps"] = steps
    tree["gpt"]["tokens_per_second"] = rate.tokens_per_second
    tree["gpt"]["reference_flops_per_token"] = rate.flops_per_token
    tree["gpt"].pop("reference_model", None)
    if rate.model is not None:
        tree["gpt"]["reference_model"] = rate.model
    tree["gpt"]["reference_precision"] = rate.precision
    for half in ("fp16", "bf16"):
        if half == rate.precision or half in tree:
            tree[half] = {**tree.get(half, {}), "enabled": half == rate.precision}
    return tree


def reference_class(hours: float, gpu: str) -> dict:
    """The JSON of a shipped class at the published throughput of a GPU."""
    preset = SHIPPED[hours]
    tree = shipped_tree(preset, batch_of(hours))
    micro_size = tree["train_micro_batch_size_per_gpu"]
    gpt = tree["gpt"]
    shape = load_presets()[preset]
    model = ModelConfig(**shape, vocab_size=gpt["vocab_size"], seq_len=gpt["seq_len"])
    rate = Rate(REFERENCE[gpu][preset], model.matmul_flops_per_token(), "fp16")
    return class_tree(tree, hours, rate, micro_size, gpt["seq_len"])


def text_of(tree: dict) -> str:
    """The JSON file of a run: a value a line, and the innermost blocks on one line where
    they fit."""
    return _block(tree, "") + "\n"


def _block(block: dict, indent: str) -> str:
    inner = indent + "  "
    rows = []
    for key, value in block.items():
        name = f"{inner}{json.dumps(key)}: "
        row = name + json.dumps(value)
        if isinstance(value, dict) and (_is_nested(value) or len(row) >= LINE):
            row = name + _block(value, inner)
        rows.append(row)
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def _is_nested(block: dict) -> bool:
    return any(isinstance(value, dict) for value in block.values())
