"""The block "gpt" of a run's JSON; each of its keys is a command-line option of the same name."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gpt.config.keys import ARGUMENTS, COUNTS, REQUIRED, Key
from gpt.config.shape import SHAPE_KEYS

# the dataset that is built by itself where it is absent
SAMPLE = "data/sample"
# targets scored in each evaluation window but the first, where the context has as many
LAST_N = 128


def option(kind: Any, default: Any, doc: str, **limits: Any) -> Any:
    """A dataclass field that carries its own Key."""
    return field(default=default, metadata={"key": Key(kind, default, doc, **limits)})


@dataclass(frozen=True)
class Options:
    """The block "gpt" without the model's shape, which is a ModelConfig of its own."""

    preset: str | None = option(str, None, "model shape by name, from gpt/config/presets.yaml")
    model_file: str | None = option(
        str,
        None,
        "another model than the GPT: a file of Python that defines build(shape, **options), or "
        "the name of one in gpt/variants (docs/extending.md)",
    )
    model_options: dict[str, Any] | None = option(
        ARGUMENTS, None, "arguments of model_file's build, a block of names and values"
    )
    optimizer_file: str | None = option(
        str,
        None,
        "in place of the block optimizer: a file of Python that defines build(named_parameters, "
        "**options), which returns a torch.optim.Optimizer (docs/extending.md)",
    )
    optimizer_options: dict[str, Any] | None = option(
        ARGUMENTS, None, "arguments of optimizer_file's build, a block of names and values"
    )
    activation_checkpointing: bool = option(
        bool,
        False,
        "keep only each block's input for the backward pass and "
        "compute the rest again: less memory, a third more time",
    )
    kernels: str = option(
        str,
        "auto",
        "of LayerNorm, GELU and cross-entropy: triton, torch, or auto for Triton on GPUs that "
        "it is built for",
        choices=("auto", "triton", "torch"),
    )
    compile: str = option(
        str,
        "none",
        "torch.compile of the blocks in training; max-autotune also searches for the fastest "
        "GEMMs. Needs a C++ compiler",
        choices=("none", "default", "max-autotune"),
    )
    cuda_graph: bool = option(
        bool,
        False,
        "experimental, not yet run on a GPU: launch the forward and backward pass of a micro-batch "
        "as one CUDA graph, which keeps the memory of its activations for the whole run. Needs a "
        "GPU and ZeRO stage 1",
    )
    seed: int = option(
        int,
        0,
        "seed of the initial weights; the order of the data depends on nothing but the dataset",
        minimum=0,
    )
    init_from: str | None = option(
        str,
        None,
        "begin with these weights instead of drawn ones: a folder that "
        "tools/zero_to_fp32.py or tools/import_languini.py made",
    )
    branch_from: str | None = option(
        str,
        None,
        "begin as another run was at a checkpoint, RUN/checkpoints/global_stepN, and go on under "
        "a schedule and max_train_steps of its own; RUN/checkpoints: at its latest",
    )
    data_root: str = option(
        str, SAMPLE, f"dataset folder; {SAMPLE} is built by itself where absent"
    )
    run_dir: str | None = option(
        str, None, "where the run is kept; default runs/<name of the JSON file>"
    )
    variant: str | None = option(
        str,
        None,
        "free name of the method, such as rope or adamw, which tables and figures call the run by",
    )
    comment: str = option(str, "", "free text kept in config.yaml and shown by the loggers")
    max_train_steps: int = option(int, REQUIRED, "optimiser steps of the whole run", minimum=0)
    eval_data_split: str = option(str, "test", "split that is evaluated during training")
    eval_every: int = option(int, 500, "steps between evaluations; 0 or less: never")
    max_eval_steps: int = option(
        int, 500, "batches of one evaluation, -1: the whole split", minimum=-1
    )
    final_eval: bool = option(
        bool, False, "after the last step score the whole split, whatever max_eval_steps says"
    )
    eval_batch_size: int = option(
        int,
        16,
        "windows of one evaluation batch, over all GPUs, which take more at a time where "
        "training does",
        minimum=1,
    )
    last_n: int | None = option(
        int,
        None,
        f"targets scored in each evaluation window but the first; default {LAST_N}, or "
        "seq_len where that is less",
        minimum=1,
    )
    log_terminal_every: int = option(
        int, 100, "steps between lines on the terminal; 0 or less: never"
    )
    log_metrics_every: int = option(
        int, 1, "steps between training lines of metrics.jsonl; 0 or less: never"
    )
    log_grads_every: int = option(
        int, 1000, "steps between norms of weights, gradients and steps; 0 or less: never"
    )
    log_activations_every: int = option(
        int,
        0,
        "steps between statistics of the residual stream and the branches of each "
        "block; 0 or less: never",
    )
    log_ckpt_every: int = option(int, 1000, "steps between checkpoints; 0 or less: only at the end")
    keep_last: int = option(int, 3, "newest checkpoints that are kept; 0 or less: all")
    keep_every: int = option(
        int, 0, "checkpoints at multiples of so many steps are kept for good; 0 or less: none"
    )
    keep_steps: list[int] | None = option(
        COUNTS,
        None,
        "steps after which a checkpoint is written, and kept for good, whatever the keys above say",
    )
    spike_policy: str = option(
        str,
        "warn",
        "where the loss leaps: warn; skip: leave the batch out before it does harm; "
        "rewind: back to a checkpoint, and on without the last batches",
        choices=("warn", "skip", "rewind"),
    )
    spike_zscore: float = option(
        float,
        8.0,
        "robust standard deviations above the median of the last 64 losses from which "
        "a loss is a spike",
        above=0,
    )
    rewind_batches: int = option(
        int,
        2,
        "batches that rewind leaves out: the one whose loss leapt and those before it",
        minimum=1,
    )
    step_timeout: float = option(
        float,
        1800.0,
        "seconds without progress after which all ranks show their stacks and end; "
        "0 or less: never",
        maximum=10**8,
    )
    logger_type: str = option(
        str,
        "none",
        "beside metrics.jsonl: TensorBoard, wandb (offline unless WANDB_MODE says "
        "otherwise), or both",
        choices=("none", "tb", "wandb", "all"),
    )
    wandb_project_name: str = option(str, "gpt", "project that wandb files the run under")
    tokens_per_second: float | None = option(
        float,
        None,
        "throughput of the compute class's reference device, for "
        "reference_hours in metrics.jsonl and for --dry_run",
        minimum=1e-3,
        maximum=10**12,
    )
    reference_flops_per_token: int | None = option(
        int,
        None,
        "FLOPs per token of the model that tokens_per_second was measured for; a model of others "
        "has no reference hours. Default: the run's own",
        minimum=1,
    )
    reference_model: str | None = option(
        str,
        None,
        "hash of the model file, its options and shape that tokens_per_second was measured for; "
        "another model has no reference hours. Default: the run's own",
    )
    reference_precision: str | None = option(
        str,
        None,
        "precision that tokens_per_second was measured in; default: the run's own",
        choices=("fp32", "fp16", "bf16"),
    )


# of an optimizer of the user's own, before a run with it
TRIAL_STEPS = 50
MODEL_OPTIONS_KEY = "gpt.model_options"
OPTIMIZER_FILE_KEY = "gpt.optimizer_file"
OPTIMIZER_OPTIONS_KEY = "gpt.optimizer_options"
OPTION_KEYS = {entry.name: entry.metadata["key"] for entry in dataclasses.fields(Options)}
# every key of the block, in the order in which config.yaml and --explain show them
GPT_KEYS = {"preset": OPTION_KEYS["preset"], **SHAPE_KEYS, **OPTION_KEYS}
