"""Keys of the blocks "fp16", "bf16" and "zero_optimization"."""

from gpt.config.keys import REQUIRED, Key

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
        bool, doc="hold what is offloaded in page-locked memory, for faster copies; default true"
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
        int,
        doc=(
            "nvme: buffers in host memory, each as large as the largest sub-group; at least one "
            "for each of weights, gradients and moments, default 4"
        ),
        minimum=1,
    ),
    "pipeline_read": Key(
        bool, doc="nvme: read the next sub-group while this one is computed, default false"
    ),
    "pipeline_write": Key(
        bool, doc="nvme: write the last sub-group while this one is computed, default false"
    ),
    "fast_init": Key(
        bool,
        doc=(
            "nvme, with weights there too: make the first fp32 weights of several sub-groups at a "
            "time, default false"
        ),
    ),
    "ratio": Key(
        float,
        doc=(
            "share of the sub-groups that is offloaded, the rest stays on the GPU: 0 to 1, default "
            "1.0; less needs stage 3 and torch_adam false"
        ),
        minimum=0,
        maximum=1,
    ),
    "super_offload": Key(
        bool,
        doc=(
            "stage 3: the host's Adam runs in a process of its own, beside the backward pass, "
            "default false"
        ),
    ),
    "cpuadam_cores_perc": Key(
        float,
        doc="share of the cores that super_offload's process gets: 0 to 1, default 0.8",
        minimum=0,
        maximum=1,
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
    "buffer_count": Key(int, doc="nvme: buffers in host memory, default 5", minimum=1),
    "buffer_size": Key(int, doc="nvme: elements of one buffer, default 100 million", minimum=1),
    "max_in_cpu": Key(
        int,
        doc="nvme: elements of a rank's part that stay in host memory, default 1 billion",
        minimum=0,
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
            "resume from a checkpoint's fp32 weights: must be true, the default, for false would "
            "make another curve"
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
            "memory; default false"
        ),
    ),
}
