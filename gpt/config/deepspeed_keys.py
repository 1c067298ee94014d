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
_WARMUP = {
    "warmup_num_steps": Key(
        int, doc="steps of warm-up, default 1000; 1 counts as 2, and DeepSpeed refuses 0", minimum=0
    ),
    "warmup_type": Key(
        str,
        doc="how the rate rises: log (default), with the logarithm of the step; linear, with it",
        choices=("log", "linear"),
    ),
}
_WARMUP_LR = {
    **_WARMUP,
    "warmup_min_lr": Key(float, doc="rate at which warm-up begins, default 0", minimum=0),
    "warmup_max_lr": Key(
        float,
        doc=(
            "rate at which warm-up ends; default: optimizer.params.lr, but of WarmupDecayLR "
            "0.001, whatever that is"
        ),
        minimum=0,
    ),
}
COSINE = "LanguiniCosineLR"
SCHEDULERS = {  # type -> parameters; all but the first are DeepSpeed's own
    COSINE: _COSINE,
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {
        **_WARMUP_LR,
        "total_num_steps": Key(
            int,
            REQUIRED,
            "steps until the rate, falling in a straight line after warm-up, is 0",
            minimum=1,
            when_missing="",
        ),
    },
    "WarmupCosineLR": {
        **_WARMUP,
        "total_num_steps": Key(
            int,
            REQUIRED,
            "steps until the cosine that follows warm-up reaches cos_min_ratio",
            minimum=1,
            when_missing="",
        ),
        "warmup_min_ratio": Key(
            float,
            doc="rate at which warm-up begins, as a share of optimizer.params.lr, default 0",
            minimum=0,
            maximum=1,
        ),
        "cos_min_ratio": Key(
            float,
            doc="rate at the end and ever after, as a share of optimizer.params.lr, default 0.0001",
            minimum=0,
            maximum=1,
        ),
    },
    "OneCycle": {
        "cycle_min_lr": Key(
            float,
            REQUIRED,
            "rate at both ends of the cycle, and where decay begins",
            minimum=0,
            when_missing="",
        ),
        "cycle_max_lr": Key(
            float, REQUIRED, "rate at the cycle's peak", minimum=0, when_missing=""
        ),
        "decay_lr_rate": Key(
            float,
            doc=(
                "r in cycle_min_lr / (1 + r n / decay_step_size), the rate n steps after the "
                "cycle; default 0: no decay"
            ),
            minimum=0,
        ),
        "cycle_first_step_size": Key(
            int, doc="steps of the rise, default 2000; DeepSpeed refuses 0", minimum=0
        ),
        "cycle_second_step_size": Key(
            int, doc="steps of the fall; default: as many as of the rise", minimum=0
        ),
        "cycle_first_stair_count": Key(
            int, doc="stairs of equal height in the rise; default 0: smooth", minimum=0
        ),
        "cycle_second_stair_count": Key(
            int, doc="stairs in the fall, 0: smooth; default: as many as in the rise", minimum=0
        ),
        "decay_step_size": Key(int, doc="steps, see decay_lr_rate; default 0: no decay", minimum=0),
        "cycle_momentum": Key(
            bool, doc="must be false: DeepSpeed's default, true, replaces the optimizer's betas"
        ),
        "cycle_min_mom": Key(float, doc="no effect without cycle_momentum", minimum=0, maximum=1),
        "cycle_max_mom": Key(float, doc="no effect without cycle_momentum", minimum=0, maximum=1),
        "decay_mom_rate": Key(float, doc="no effect without cycle_momentum", minimum=0),
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": Key(float, doc="rate at the start, default 0.001", minimum=0),
        "lr_range_test_step_size": Key(
            int,
            doc="steps of a growth by step_rate times min_lr, default 2000; DeepSpeed refuses 0",
            minimum=0,
        ),
        "lr_range_test_step_rate": Key(
            float, doc="growth per step_size, in units of min_lr, default 1.0", minimum=0
        ),
        "lr_range_test_staircase": Key(
            bool, doc="grow once every step_size steps; default false: a little at every step"
        ),
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
    "adam_w_mode": Key(
        bool,
        doc=(
            "decoupled weight decay (DeepSpeed's default, for Adam too); false: of Adam, the "
            "decay is added to the gradient. AdamW ignores it"
        ),
    ),
    "amsgrad": Key(
        bool,
        doc=(
            "divide by the root of the largest second moment so far, default false; only with "
            "torch_adam, DeepSpeed's Adams cannot"
        ),
    ),
    "fused": Key(bool, True, "one kernel for all parameters, with torch_adam"),
}
OPTIMIZERS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {
        **_LR,
        "momentum": Key(
            float, doc="decay of the sum of past gradients; default 0: none", minimum=0, maximum=1
        ),
        "dampening": Key(
            float,
            doc="share of a gradient that is kept out of that sum, default 0",
            minimum=0,
            maximum=1,
        ),
        "weight_decay": Key(
            float, doc="times the weights, added to the gradient, default 0", minimum=0
        ),
        "nesterov": Key(bool, doc="Nesterov's momentum, default false; needs momentum above 0"),
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
    "consecutive_hysteresis": Key(
        bool,
        doc=(
            "count the overflows of hysteresis anew after every step without one; default false: "
            "only after the scale has doubled"
        ),
    ),
    "min_loss_scale": Key(
        int, 1, "the run stops when an overflow happens at this scale", minimum=1
    ),
}
BF16_KEYS = {
    "enabled": Key(bool, False, "train in bf16"),
    "immediate_grad_update": Key(
        bool, doc="no effect: of DeepSpeed's BF16_Optimizer, which the trainer never takes"
    ),
}
_OFFLOAD = {
    "nvme_path": Key(str, doc="folder on the NVMe disk, with device nvme"),
    "pin_memory": Key(
        ANY, doc="hold what is offloaded in page-locked memory, for faster copies; default true"
    ),
}
_OFFLOAD_OPTIMIZER = {
    "device": Key(
        str,
        REQUIRED,
        "where moments and fp32 weights are held, and the host makes the step; none: on the GPU. "
        "Below stage 3 nvme is cpu",
        choices=("none", "cpu", "nvme"),
        when_missing="none, cpu or nvme",
    ),
    **_OFFLOAD,
    "buffer_count": Key(
        ANY,
        doc=(
            "nvme: buffers in host memory, each as large as the largest sub-group; at least one "
            "for each of weights, gradients and moments, default 4"
        ),
    ),
    "pipeline_read": Key(
        ANY, doc="nvme: read the next sub-group while this one is computed, default false"
    ),
    "pipeline_write": Key(
        ANY, doc="nvme: write the last sub-group while this one is computed, default false"
    ),
    "fast_init": Key(
        ANY,
        doc=(
            "nvme, with weights there too: make the first fp32 weights of several sub-groups at a "
            "time, default false"
        ),
    ),
    "ratio": Key(
        ANY,
        doc=(
            "share of the sub-groups that is offloaded, the rest stays on the GPU: 0 to 1, default "
            "1.0; less needs stage 3 and torch_adam false"
        ),
    ),
    "super_offload": Key(
        ANY,
        doc=(
            "stage 3: the host's Adam runs in a process of its own, beside the backward pass, "
            "default false"
        ),
    ),
    "cpuadam_cores_perc": Key(
        ANY, doc="share of the cores that super_offload's process gets: 0 to 1, default 0.8"
    ),
}
_OFFLOAD_PARAM = {
    "device": Key(
        str,
        REQUIRED,
        "where a rank's part of the weights is held, stage 3; none: on the GPU",
        choices=("none", "cpu", "nvme"),
        when_missing="none, cpu or nvme",
    ),
    **_OFFLOAD,
    "buffer_count": Key(ANY, doc="nvme: buffers in host memory, default 5"),
    "buffer_size": Key(ANY, doc="nvme: elements of one buffer, default 100 million"),
    "max_in_cpu": Key(
        ANY, doc="nvme: elements of a rank's part that stay in host memory, default 1 billion"
    ),
}
ZERO_KEYS = {
    "stage": Key(
        int,
        1,
        "0: each rank holds all, 1: optimizer states are shared out, 2: gradients too, "
        "3: weights too",
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
        int,
        5 * 10**7,
        "elements of weights gathered at a time after a step, at stages 1 and 2; even",
        minimum=1,
    ),
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
    "offload_param": _OFFLOAD_PARAM,
    "sub_group_size": Key(
        int,
        doc=(
            "stage 3: elements of a rank's part that the optimizer steps at a time, a sub-group; "
            "default 1 billion"
        ),
        minimum=1,
    ),
    "zero_hpz_partition_size": Key(
        int,
        doc=(
            "stage 3: ranks that share one more copy of the weights, from which the backward pass "
            "gathers; default 1: no such copy"
        ),
        minimum=1,
    ),
    "stage3_prefetch_bucket_size": Key(
        int,
        doc="elements of weights gathered ahead of their use, default 50 million; 0: none",
        minimum=0,
    ),
    "stage3_param_persistence_threshold": Key(
        int,
        doc="parameters of at most so many elements stay gathered, default 100,000",
        minimum=0,
    ),
    "stage3_model_persistence_threshold": Key(
        int, doc="elements that may stay gathered in all; default: any number", minimum=0
    ),
    "stage3_max_live_parameters": Key(
        int,
        doc="nothing is gathered ahead beyond so many gathered elements, default 1 billion",
        minimum=0,
    ),
    "stage3_max_reuse_distance": Key(
        int,
        doc=(
            "weights stay gathered that are used again within so many elements of others, default "
            "1 billion"
        ),
        minimum=0,
    ),
    "stage3_module_granularity_threshold": Key(
        int,
        doc=(
            "modules with at most so many elements per submodule are gathered whole; default 0: "
            "none but the model's blocks, which always are"
        ),
        minimum=0,
    ),
    "contiguous_gradients": Key(
        bool,
        doc=(
            "copy gradients into the bucket's buffer as they arise, default true; always so with "
            "offload_optimizer at stages 1 and 2"
        ),
    ),
    "reduce_scatter": Key(
        bool,
        doc=(
            "reduce each gradient for the rank that owns it, default true; false: the sum goes to "
            "all ranks"
        ),
    ),
    "use_multi_rank_bucket_allreduce": Key(
        bool,
        doc=(
            "stages 1 and 2, under reduce_scatter: one all-reduce for all owners in a bucket, "
            "default true; false: a reduce for each"
        ),
    ),
    "overlap_comm": Key(
        bool,
        doc=(
            "reduce gradients on a stream of its own, beside the backward pass; default: true at "
            "stage 3, false below"
        ),
    ),
    "allgather_partitions": Key(bool, doc="no effect: DeepSpeed reads it and never asks for it"),
    "load_from_fp32_weights": Key(
        bool,
        doc=(
            "resume from a checkpoint's fp32 weights, default true; false, at stages 1 and 2: from "
            "the 16-bit ones, another curve. Stage 3 ignores it"
        ),
    ),
    "ignore_unused_parameters": Key(
        bool, doc="no effect: asked only by a norm that the trainer computes otherwise"
    ),
    "zero_quantized_weights": Key(
        bool, doc="stage 3: gather weights as int8, which rounds them; default false"
    ),
    "zero_quantized_gradients": Key(
        bool,
        doc=(
            "stage 3 over several hosts: reduce gradients as int4, which rounds them; default false"
        ),
    ),
    "zero_quantized_nontrainable_weights": Key(
        bool,
        doc="no effect but that stage 3 compiles a kernel: every weight of the model is trained",
    ),
    "memory_efficient_linear": Key(
        bool,
        doc=(
            "stage 3: replace torch's linear function by one that keeps no gathered weight for "
            "the backward pass, default true"
        ),
    ),
    "override_module_apply": Key(
        bool, doc="no effect: of models built inside deepspeed.zero.Init, as none is here"
    ),
    "log_trace_cache_warnings": Key(
        bool, doc="stage 3: print where modules run in another order than recorded, default false"
    ),
    "enable_sanity_checks": Key(
        bool,
        doc="stage 3: compare between ranks what is gathered and reduced, slowly; default false",
    ),
    "stage3_gather_16bit_weights_on_model_save": Key(
        bool, doc="no effect: of save_16bit_model, which is never called; use zero_to_fp32.py"
    ),
    "stage3_gather_fp16_weights_on_model_save": Key(
        bool, doc="no effect: the old name of the key before it"
    ),
    "stage3_use_all_reduce_for_fetch_params": Key(
        bool, doc="gather weights by an all-reduce of zero-padded parts, default false"
    ),
    "stage3_allgather_sequential": Key(
        bool,
        doc=(
            "gather weights one by one, without a buffer for several, and one ahead of use; "
            "default false"
        ),
    ),
    "pipeline_loading_checkpoint": Key(
        bool,
        doc=(
            "stage 3: ranks of a host read a checkpoint one after another, which spares its "
            "memory; default false. Below stage 3 no run can resume with it"
        ),
    ),
}

_MONITOR = {
    "output_path": Key(ANY, doc='folder, default "": the current one'),
    "job_name": Key(ANY, doc="folder in that, default DeepSpeedJobName"),
}
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
    "optimizer": {
        "type": Key(
            str,
            REQUIRED,
            "Adam is AdamW unless adam_w_mode is false; without this block: Adam",
            choices=tuple(OPTIMIZERS),
            when_missing="",
        ),
        "params": OPTIMIZERS,
    },
    "scheduler": {
        "type": Key(
            str,
            REQUIRED,
            "learning rate by step; LanguiniCosineLR is the trainer's own, the rest DeepSpeed's",
            choices=tuple(SCHEDULERS),
            when_missing="",
        ),
        "params": SCHEDULERS,
    },
    "prescale_gradients": Key(
        bool,
        doc=(
            "divide gradients by the number of ranks before they are summed, not after; default "
            "false. Unless reduce_scatter is false, stage 1 ignores it, 2 and 3 refuse it"
        ),
    ),
    "gradient_predivide_factor": Key(
        float,
        doc=(
            "divisor of gradients before their sum over ranks, the rest of the division comes "
            "after; default 1.0. Stages 1 to 3 treat it as they do prescale_gradients"
        ),
        above=0,
    ),
    "communication_data_type": Key(
        str,
        doc="type in which gradients are summed over ranks; default: the run's precision",
        choices=("fp16", "bf16", "fp32"),
    ),
    "zero_allow_untested_optimizer": Key(
        bool,
        doc="let ZeRO take an optimizer that DeepSpeed does not list; default: true for SGD only",
    ),
    "zero_force_ds_cpu_optimizer": Key(
        bool, doc="no effect: of optimizers that a program hands over, as none does here"
    ),
    "wall_clock_breakdown": Key(
        bool,
        doc=(
            "print the milliseconds of forward, backward, reduction and step for every "
            "micro-batch, waiting for the GPU; default false"
        ),
    ),
    "memory_breakdown": Key(
        bool,
        doc=(
            "print the GPU's and the host's memory around every pass and step, on rank 0, and "
            "set torch's peak back; default false"
        ),
    ),
    "dump_state": Key(
        bool,
        doc="log the attributes of DeepSpeed's engine at the start, with --verbose; default false",
    ),
    "disable_allgather": Key(bool, doc="no effect: DeepSpeed reads it and never asks for it"),
    "disable_python_gc": Key(
        bool, doc="switch Python's collection of cyclic garbage off for the run, default false"
    ),
    # DeepSpeed's own observers and file traffic.
    "flops_profiler": {
        "enabled": Key(
            bool,
            doc=(
                "count and time one step's operations by module, on rank 0; switches "
                "wall_clock_breakdown on. Default false"
            ),
        ),
        "profile_step": Key(ANY, doc="optimiser steps before the one that is counted, default 1"),
        "module_depth": Key(
            ANY, doc="levels of nested modules to sum up by, default -1: all of them"
        ),
        "top_modules": Key(ANY, doc="modules named for each level, default 1"),
        "detailed": Key(ANY, doc="print the figures of every module too, default true"),
        "output_file": Key(ANY, doc="file for the figures; default: the terminal"),
        "recompute_fwd_factor": Key(
            ANY,
            doc=(
                "forward passes that the backward pass is taken to repeat, 1.0 with activation "
                "checkpointing; default 0.0"
            ),
        ),
    },
    "comms_logger": {
        "enabled": Key(
            bool, doc="no effect: the block alone, even with false, has every call wait for the GPU"
        ),
        "verbose": Key(
            ANY,
            doc="log each call's time and size, the only output, with --verbose; default false",
        ),
        "prof_all": Key(ANY, doc="time all calls, default true"),
        "prof_ops": Key(
            ANY, doc='calls to time without prof_all, such as ["all_reduce"], default none'
        ),
        "debug": Key(ANY, doc="log the name of the calling function too, default false"),
    },
    "tensorboard": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to TensorBoard; default false"
        ),
        **_MONITOR,
    },
    "csv_monitor": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to CSV files; default false"
        ),
        **_MONITOR,
    },
    "wandb": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to a run of wandb; default false"
        ),
        "group": Key(ANY, doc="wandb's group of runs, default none"),
        "team": Key(ANY, doc="wandb's entity; default: the user's"),
        "project": Key(ANY, doc="wandb's project, default deepspeed"),
    },
    "comet": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to Comet; default false"
        ),
        "samples_log_interval": Key(ANY, doc="sequences between two values, default 100"),
        "project": Key(ANY, doc="Comet's project; default: of Comet's own settings"),
        "workspace": Key(ANY, doc="Comet's workspace; default: of Comet's own settings"),
        "api_key": Key(
            ANY, doc="Comet's key; better in its settings, for config.yaml would show it"
        ),
        "experiment_name": Key(ANY, doc="name shown for the run; default: Comet chooses"),
        "experiment_key": Key(ANY, doc="Comet's id of the run, 32 to 50 letters and digits"),
        "online": Key(ANY, doc="false: keep the values on this machine; default: send them"),
        "mode": Key(
            ANY, doc="get, create or get_or_create: whether experiment_key must be there, or new"
        ),
    },
    "aio": {
        "block_size": Key(ANY, doc="device nvme: bytes of one request, default 1048576"),
        "queue_depth": Key(ANY, doc="requests under way at a time, per thread, default 8"),
        "intra_op_parallelism": Key(ANY, doc="threads that share one read or write, default 1"),
        "single_submit": Key(
            ANY, doc="hand requests to the system one by one, not a queue at once; default false"
        ),
        "overlap_events": Key(
            ANY, doc="refill the queue as requests end, not once all have ended; default true"
        ),
        "use_gds": Key(
            ANY, doc="offload_param: GPUDirect Storage, past host memory, on CUDA; default false"
        ),
    },
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
