"""What a run's JSON may hold: every key with its type, range and meaning, and the checks that name
each mistake.

DeepSpeed accepts unknown top-level keys and misspelt optimizer parameters in silence; here they are
mistakes.
"""

from gpt.config.keys import ANY, REQUIRED, Key
from gpt.config.options import GPT_KEYS

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
