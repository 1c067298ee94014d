"""What a run's JSON may hold: every key with its type, range and meaning, and the checks that name
each mistake.

DeepSpeed accepts unknown top-level keys and misspelt optimizer parameters in silence; here they are
mistakes.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()
LARGEST = 2**53  # whole numbers beyond it are no exact floats, and surely mistakes
ANY = "any"  # DeepSpeed's own, passed on as it is


@dataclass(frozen=True)
class Key:
    """One value: its type (int, float, bool, str, "pair" for two floats, or ANY), its default and
    its range."""

    kind: Any
    default: Any = None
    doc: str = ""
    minimum: float | None = None  # inclusive
    above: float | None = None  # exclusive lower bound
    maximum: float | None = None  # inclusive
    choices: tuple | None = None

    def problem(self, value):
        """What is wrong with `value`, or None. `value` is never None."""
        if value == "auto" and "auto" not in (self.choices or ()):
            return 'is "auto", which only the Hugging Face Trainer fills in: write the value'
        if self.kind == ANY:
            return None
        if self.kind == "pair":
            numbers = (
                isinstance(value, (list, tuple))
                and len(value) == 2
                and all(_is_number(v) for v in value)
            )
            return (
                None
                if numbers and all(0 <= v < 1 for v in value)
                else f"is {value!r}, not two numbers in [0, 1)"
            )
        if self.kind is bool:
            return None if isinstance(value, bool) else f"is {value!r}, not true or false"
        if self.kind is str and isinstance(value, str):
            return "is empty" if not value and self.default != "" else self._out_of_choices(value)
        if self.kind is str:
            return f"is {value!r}, not a text"
        if self.kind is int and not (isinstance(value, int) and not isinstance(value, bool)):
            return f"is {value!r}, not a whole number"
        if not _is_number(value):
            return f"is {value!r}, not a number" + (
                " (leave the quotes out)" if _reads_as_number(value) else ""
            )
        return self._out_of_range(value) or self._out_of_choices(value)

    def _out_of_range(self, value):
        if isinstance(value, int) and abs(value) > LARGEST:
            return f"is beyond {LARGEST}, too large to be meant"
        if not math.isfinite(value):
            return f"is {value!r}, not a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"is {value!r}, must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"is {value!r}, must be above {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"is {value!r}, must be at most {self.maximum}"
        return None

    def _out_of_choices(self, value):
        if self.choices is None or value in self.choices:
            return None
        return f"is {value!r}, must be one of {', '.join(map(str, self.choices))}"


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reads_as_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def option(kind, default, doc, **limits):
    """A dataclass field that carries its own Key."""
    return field(default=default, metadata={"key": Key(kind, default, doc, **limits)})


@dataclass(frozen=True)
class Options:
    """The block "gpt" of a run's JSON; each is a command-line option of the same name."""

    preset: str | None = option(str, None, "model shape by name, from gpt/presets.yaml")
    n_layers: int | None = option(
        int, None, "transformer blocks; overrides the preset's", minimum=1, maximum=10_000
    )
    h_dim: int | None = option(
        int, None, "width of the residual stream; overrides the preset's", minimum=1, maximum=10**6
    )
    mlp_dim: int | None = option(
        int, None, "hidden width of the MLPs; overrides the preset's", minimum=1, maximum=10**6
    )
    n_heads: int | None = option(
        int, None, "attention heads; overrides the preset's", minimum=1, maximum=10**5
    )
    head_dim: int | None = option(
        int, None, "width of one head; overrides the preset's", minimum=1, maximum=10**5
    )
    vocab_size: int = option(
        int, 16384, "ids of the tokenizer; must be the dataset's", minimum=2, maximum=2**24
    )
    seq_len: int = option(
        int, 512, "tokens of context, in training and evaluation", minimum=2, maximum=2**24
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
    data_root: str = option(
        str, "data/sample", "dataset folder; data/sample is built by itself where absent"
    )
    run_dir: str | None = option(
        str, None, "where the run is kept; default runs/<name of the JSON file>"
    )
    comment: str = option(str, "", "free text kept in config.yaml and shown by the loggers")
    max_train_steps: int = option(int, REQUIRED, "optimiser steps of the whole run", minimum=0)
    eval_data_split: str = option(str, "test", "split that is evaluated during training")
    eval_every: int = option(int, 500, "steps between evaluations; 0 or less: never")
    max_eval_steps: int = option(
        int, 500, "batches of one evaluation, -1: the whole split", minimum=-1
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
        "targets scored in each evaluation window but the first; default 128, or "
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
        above=0,
    )


GPT_KEYS = {f.name: f.metadata["key"] for f in dataclasses.fields(Options)}

_COSINE = {
    "max_lr": Key(
        float,
        6e-4,
        "where the cosine starts; warm-up multiplies the cosine already under way",
        above=0,
    ),
    "min_lr": Key(float, 6e-6, "learning rate from decay_steps on", minimum=0),
    "warmup_steps": Key(int, 200, "steps of linear warm-up", minimum=0),
    "decay_steps": Key(int, REQUIRED, "steps until the cosine reaches min_lr", minimum=1),
}
_POSITIVE = Key(float, minimum=0)
_RATIO = Key(float, minimum=0, maximum=1)
_STEPS = Key(int, minimum=0)
_WARMUP = {"warmup_num_steps": _STEPS, "warmup_type": Key(str, choices=("log", "linear"))}
_WARMUP_LR = {**_WARMUP, "warmup_min_lr": _POSITIVE, "warmup_max_lr": _POSITIVE}
COSINE = "LanguiniCosineLR"
SCHEDULERS = {  # type -> parameters; all but the first are DeepSpeed's own
    COSINE: _COSINE,
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {**_WARMUP_LR, "total_num_steps": Key(int, REQUIRED, minimum=1)},
    "WarmupCosineLR": {
        **_WARMUP,
        "total_num_steps": Key(int, REQUIRED, minimum=1),
        "warmup_min_ratio": _RATIO,
        "cos_min_ratio": _RATIO,
    },
    "OneCycle": {
        "cycle_min_lr": Key(float, REQUIRED, minimum=0),
        "cycle_max_lr": Key(float, REQUIRED, minimum=0),
        "decay_lr_rate": _POSITIVE,
        "cycle_first_step_size": _STEPS,
        "cycle_second_step_size": _STEPS,
        "cycle_first_stair_count": _STEPS,
        "cycle_second_stair_count": _STEPS,
        "decay_step_size": _STEPS,
        "cycle_momentum": Key(bool),
        "cycle_min_mom": _RATIO,
        "cycle_max_mom": _RATIO,
        "decay_mom_rate": _POSITIVE,
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": _POSITIVE,
        "lr_range_test_step_size": _STEPS,
        "lr_range_test_step_rate": _POSITIVE,
        "lr_range_test_staircase": Key(bool),
    },
}

_LR = {"lr": Key(float, doc="learning rate; not with LanguiniCosineLR, which owns it", above=0)}
_ADAM = {
    **_LR,
    "betas": Key("pair", [0.9, 0.95], "decay of the first and second moment"),
    "eps": Key(float, 1e-8, "added to the root of the second moment", above=0),
    "weight_decay": Key(float, 0.0, "decoupled weight decay", minimum=0),
    "torch_adam": Key(
        bool, True, "torch's fused Adam; false: DeepSpeed's, which is compiled on first use"
    ),
    "adam_w_mode": Key(bool, doc="decoupled weight decay (DeepSpeed's default, for Adam too)"),
    "amsgrad": Key(bool),
    "fused": Key(bool, True, "one kernel for all parameters, with torch_adam"),
}
OPTIMIZERS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {
        **_LR,
        "momentum": _RATIO,
        "dampening": _RATIO,
        "weight_decay": _POSITIVE,
        "nesterov": Key(bool),
    },
}

FP16_KEYS = {
    "enabled": Key(bool, False, "train in fp16 with loss scaling"),
    "loss_scale": Key(float, 0, "fixed loss scale; 0: dynamic", minimum=0),
    "initial_scale_power": Key(
        int, 16, "the dynamic scale starts at 2 to this power", minimum=0, maximum=32
    ),
    "loss_scale_window": Key(
        int, 2000, "steps without overflow before the scale doubles", minimum=1
    ),
    "hysteresis": Key(int, 1, "overflows before the scale halves", minimum=1),
    "consecutive_hysteresis": Key(bool),
    "min_loss_scale": Key(
        int, 1, "the run stops when an overflow happens at this scale", minimum=1
    ),
}
BF16_KEYS = {
    "enabled": Key(bool, False, "train in bf16"),
    "immediate_grad_update": Key(bool),
}
_OFFLOAD = {
    "device": Key(str, REQUIRED, "none, cpu or nvme", choices=("none", "cpu", "nvme")),
    "nvme_path": Key(str, doc="folder on the NVMe disk, with device nvme"),
    **dict.fromkeys(("pin_memory", "buffer_count"), Key(ANY)),
}
ZERO_KEYS = {
    "stage": Key(
        int,
        1,
        "1: optimizer states are shared out, 2: gradients too, 3: weights too",
        choices=(0, 1, 2, 3),
    ),
    "reduce_bucket_size": Key(
        int,
        5 * 10**7,
        "elements of gradients reduced at a time; a buffer of so many is "
        "allocated, with overlap_comm at stages 1 and 2 two",
        minimum=1,
    ),
    "allgather_bucket_size": Key(
        int, 5 * 10**7, "elements of weights gathered at a time", minimum=1
    ),
    "offload_optimizer": {
        **_OFFLOAD,
        **dict.fromkeys(
            (
                "pipeline_read",
                "pipeline_write",
                "fast_init",
                "ratio",
                "super_offload",
                "cpuadam_cores_perc",
            ),
            Key(ANY),
        ),
    },
    "offload_param": {**_OFFLOAD, **dict.fromkeys(("buffer_size", "max_in_cpu"), Key(ANY))},
    **dict.fromkeys(("sub_group_size", "zero_hpz_partition_size"), Key(int, minimum=1)),
    **dict.fromkeys(
        (
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_model_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_module_granularity_threshold",
        ),
        Key(int, minimum=0),
    ),
    **dict.fromkeys(
        (
            "contiguous_gradients",
            "reduce_scatter",
            "use_multi_rank_bucket_allreduce",
            "overlap_comm",
            "allgather_partitions",
            "load_from_fp32_weights",
            "ignore_unused_parameters",
            "zero_quantized_weights",
            "zero_quantized_gradients",
            "zero_quantized_nontrainable_weights",
            "memory_efficient_linear",
            "override_module_apply",
            "log_trace_cache_warnings",
            "enable_sanity_checks",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
            "pipeline_loading_checkpoint",
        ),
        Key(bool),
    ),
}


def _passed(*names):
    return {"enabled": Key(bool), **dict.fromkeys(names, Key(ANY))}


_MONITOR = ("output_path", "job_name")
TOP_KEYS = {
    "gpt": GPT_KEYS,
    "train_batch_size": Key(
        int, doc="sequences per optimiser step, over all GPUs", minimum=1, maximum=10**7
    ),
    "train_micro_batch_size_per_gpu": Key(
        int,
        doc=(
            "sequences per forward pass of a GPU, at most: the largest divisor of its share "
            "of the batch is taken; beside gradient_accumulation_steps exactly so many"
        ),
        minimum=1,
        maximum=10**7,
    ),
    "gradient_accumulation_steps": Key(
        int,
        doc="forward passes per optimiser step and GPU, exactly; solved where absent",
        minimum=1,
        maximum=10**7,
    ),
    "gradient_clipping": Key(
        float, 0.0, "largest norm of the whole gradient; 0: no clipping", minimum=0
    ),
    "fp16": FP16_KEYS,
    "bf16": BF16_KEYS,
    "zero_optimization": ZERO_KEYS,
    "optimizer": {"type": Key(str, REQUIRED, choices=tuple(OPTIMIZERS)), "params": OPTIMIZERS},
    "scheduler": {"type": Key(str, REQUIRED, choices=tuple(SCHEDULERS)), "params": SCHEDULERS},
    "prescale_gradients": Key(bool),
    "gradient_predivide_factor": Key(float, above=0),
    "communication_data_type": Key(str, choices=("fp16", "bf16", "fp32")),
    **dict.fromkeys(
        (
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
            "wall_clock_breakdown",
            "memory_breakdown",
            "dump_state",
            "disable_allgather",
            "disable_python_gc",
        ),
        Key(bool),
    ),
    # DeepSpeed's own observers and file traffic.
    "flops_profiler": _passed(
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
        "recompute_fwd_factor",
    ),
    "comms_logger": _passed("verbose", "prof_all", "prof_ops", "debug"),
    "tensorboard": _passed(*_MONITOR),
    "csv_monitor": _passed(*_MONITOR),
    "wandb": _passed("group", "team", "project"),
    "comet": _passed(
        "samples_log_interval",
        "project",
        "workspace",
        "api_key",
        "experiment_name",
        "experiment_key",
        "online",
        "mode",
    ),
    "aio": dict.fromkeys(
        (
            "block_size",
            "queue_depth",
            "intra_op_parallelism",
            "single_submit",
            "overlap_events",
            "use_gds",
        ),
        Key(ANY),
    ),
    "data_types": {
        "grad_accum_dtype": Key(
            str,
            doc=(
                "what gradients of a step's micro-batches are summed in; where absent fp32 "
                "for bf16 with accumulation, else the run's precision"
            ),
            choices=("fp16", "bf16", "fp32"),
        )
    },
}


def _refused(reason, *names):
    return dict.fromkeys(names, reason)


# Real keys of DeepSpeed that would make the run something else than what its JSON says, or do
# nothing.
REFUSED = {
    **_refused("with fp16 it clips scaled gradients: use fp16 or bf16", "torch_autocast"),
    **_refused("it needs apex: use fp16 or bf16", "amp"),
    **_refused("it changes the batch size: set train_batch_size", "elasticity", "autotuning"),
    **_refused(
        "batches are a pure function of the step",
        "curriculum_learning",
        "data_efficiency",
        "dataloader_drop_last",
        "managed_gradient_accumulation",
    ),
    **_refused(
        "the model is not cut that way: use ZeRO stage 3",
        "pipeline",
        "tensor_parallel",
        "expert_parallel",
        "use_data_before_expert_parallelism",
        "seq_parallel_communication_data_type",
        "hybrid_engine",
    ),
    **_refused(
        "it changes the model",
        "progressive_layer_drop",
        "compression_training",
        "quantize_training",
        "weight_quantization",
        "sparse_attention",
        "eigenvalue",
    ),
    **_refused(
        "gradients are averaged over the global batch, and dense",
        "gradient_allreduce_op",
        "sparse_gradients",
    ),
    **_refused(
        "checkpoints are written and found by the trainer itself",
        "checkpoint",
        "nebula",
        "datastates_ckpt",
    ),
    **_refused(
        'progress is printed by "gpt": {"log_terminal_every"}, details by --verbose',
        "steps_per_print",
        "log_level",
    ),
    **_refused('set "gpt": {"activation_checkpointing": true}', "activation_checkpointing"),
    **_refused('set "gpt": {"vocab_size"}', "vocabulary_size"),
    **_refused('set "gpt": {"compile": "default"}', "compile"),
    **_refused("graphs of operations are not recorded", "graph_harvesting"),
    **_refused(
        "the weights must have an fp32 copy",
        "fp16.fp16_master_weights_and_grads",
        "bf16.bf16_master_weights_and_grads",
        "bf16.bf16_optimizer_states",
    ),
    **_refused("inputs are token ids", "fp16.auto_cast"),
    **_refused(
        "a gradient that is not finite must never reach the weights: leave it out",
        "bf16.check_grad_overflow",
    ),
    **_refused(
        "it makes the host wait for the GPU at every micro-batch, and the speed is in "
        "metrics.jsonl: leave it out",
        "timers",
    ),
    **_refused(
        "use offload_optimizer or offload_param",
        "zero_optimization.cpu_offload",
        "zero_optimization.cpu_offload_param",
        "zero_optimization.cpu_offload_use_pin_memory",
    ),
    **_refused(
        "checkpoints of it cannot be consolidated",
        "zero_optimization.parameter_alignment",
        "zero_optimization.zenflow",
        "zero_optimization.elastic_checkpoint",
        "zero_optimization.legacy_stage1",
        "zero_optimization.save_muon_momentum_buffer_in_memory",
    ),
    **_refused(
        "norms by module would be wrong with it, and it brings nothing without offload: leave"
        " it out",
        "zero_optimization.round_robin_gradients",
    ),
    **_refused("norms of the gradient are always reported", "zero_optimization.compute_grad_norm"),
    **_refused("the model has no such modules", "zero_optimization.leaf_module"),
    **_refused("it is fixed by optimizer.type", "optimizer.legacy_fusion"),
    **_refused(
        "all weights have one type: set fp16 or bf16",
        "data_types.param_dtype",
        "data_types.buffer_dtype",
        "data_types.keep_in_fp32_modules",
    ),
}


def nearest(name, known):
    """The words (did you mean …?) for the known name closest to `name`, or an empty text."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check(block, keys, path="") -> list:
    """All mistakes in a JSON block against its table of keys: (path of the value, what is wrong
    with it)."""
    if not isinstance(block, dict):
        return [(path, f"is {block!r}, not a block {{…}}")]
    mistakes = []
    for name, value in block.items():
        where = f"{path}.{name}" if path else name
        key = keys.get(name)
        if key is None:
            mistakes.append((where, _unknown(name, where, keys)))
        elif name == "params" and "type" in keys:
            variant = key.get(block.get("type")) if isinstance(block.get("type"), str) else None
            mistakes += check(value, variant, where) if variant is not None else []
        elif isinstance(key, dict):
            mistakes += check(value, key, where)
        elif key.problem(value):
            mistakes.append((where, key.problem(value)))
    for name, key in keys.items():
        if isinstance(key, Key) and key.default is REQUIRED and name not in block:
            mistakes.append(
                (
                    f"{path}.{name}" if path else name,
                    "is missing" + (f": {key.doc}" if key.doc else ""),
                )
            )
    return mistakes


def _unknown(name, where, keys):
    if where in REFUSED:
        return f"is not supported here: {REFUSED[where]}"
    homes = [home for home in _homes(TOP_KEYS, name) if home != where]
    close = nearest(name, keys)
    return (
        f"is not known there: it belongs in {' or '.join(homes)}"
        if homes and not close
        else f"is not a known key{close}"
    )


def _homes(keys, name, path=""):
    """Paths at which a key called `name` exists."""
    found = []
    for key, value in keys.items():
        where = f"{path}.{key}" if path else key
        if key == name:
            found.append(where)
        if isinstance(value, dict) and key == "params":
            found += (
                [f"{where}.{name}"] if any(name in variant for variant in value.values()) else []
            )
        elif isinstance(value, dict) and (
            not isinstance(value.get("enabled"), Key) or key in ("fp16", "bf16")
        ):
            # DeepSpeed's observers share names that nobody looks for there
            found += _homes(value, name, where)
    return found
