"""Keys of DeepSpeed that would make the run something else than what its JSON says, or do nothing,
and those that DeepSpeed itself has taken out."""

# reasons that several keys share
_BATCH_SIZE = "it changes the batch size: set train_batch_size"
_PURE_BATCHES = "batches are a pure function of the step"
_NOT_CUT = "the model is not cut that way: use ZeRO stage 3"
_OTHER_MODEL = "it changes the model"
_DENSE_AVERAGE = "gradients are averaged over the global batch, and dense"
_OWN_CHECKPOINTS = "checkpoints are written and found by the trainer itself"
_OWN_PROGRESS = 'progress is printed by "gpt": {"log_terminal_every"}, details by --verbose'
_FP32_COPY = "the weights must have an fp32 copy"
_OFFLOAD = "use offload_optimizer or offload_param"
_NOT_CONSOLIDATED = "checkpoints of it cannot be consolidated"
_LEAVE_OUT = "leave it out"
_ONE_TYPE = "all weights have one type: set fp16 or bf16"

# dotted path of a key that DeepSpeed 0.19.8 has removed -> what to do
REMOVED = {
    "amp": "use fp16 or bf16",
    "elasticity": "set train_batch_size",
    "curriculum_learning": _PURE_BATCHES,
    "progressive_layer_drop": _LEAVE_OUT,
    "compression_training": _LEAVE_OUT,
    "quantize_training": _LEAVE_OUT,
    "sparse_attention": _LEAVE_OUT,
    "eigenvalue": _LEAVE_OUT,
    "graph_harvesting": _LEAVE_OUT,
    "sparse_gradients": _DENSE_AVERAGE,
    "nebula": _OWN_CHECKPOINTS,
    "zero_optimization.mics_shard_size": "use ZeRO stage 3 without it",
    "zero_optimization.mics_hierarchical_params_gather": "use ZeRO stage 3 without it",
    "zero_optimization.zeropp_loco_param": _LEAVE_OUT,
}
# dotted path of the key -> why it has no place here
REFUSED = {
    **{path: f"DeepSpeed has removed it: {mend}" for path, mend in REMOVED.items()},
    "torch_autocast": "with fp16 it clips scaled gradients: use fp16 or bf16",
    "autotuning": _BATCH_SIZE,
    "data_efficiency": _PURE_BATCHES,
    "dataloader_drop_last": _PURE_BATCHES,
    "managed_gradient_accumulation": _PURE_BATCHES,
    "pipeline": _NOT_CUT,
    "tensor_parallel": _NOT_CUT,
    "expert_parallel": _NOT_CUT,
    "use_data_before_expert_parallelism": _NOT_CUT,
    "seq_parallel_communication_data_type": _NOT_CUT,
    "hybrid_engine": _NOT_CUT,
    "weight_quantization": _OTHER_MODEL,
    "gradient_allreduce_op": _DENSE_AVERAGE,
    "checkpoint": _OWN_CHECKPOINTS,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "steps_per_print": _OWN_PROGRESS,
    "log_level": _OWN_PROGRESS,
    "activation_checkpointing": 'set "gpt": {"activation_checkpointing": true}',
    "vocabulary_size": 'set "gpt": {"vocab_size"}',
    "compile": 'set "gpt": {"compile": "default"}',
    "fp16.fp16_master_weights_and_grads": _FP32_COPY,
    "bf16.bf16_master_weights_and_grads": _FP32_COPY,
    "bf16.bf16_optimizer_states": _FP32_COPY,
    "fp16.auto_cast": "inputs are token ids",
    "bf16.check_grad_overflow": (
        "a gradient that is not finite must never reach the weights: leave it out"
    ),
    "timers": (
        "it makes the host wait for the GPU at every micro-batch, and the speed is in "
        "metrics.jsonl: leave it out"
    ),
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.parameter_alignment": _NOT_CONSOLIDATED,
    "zero_optimization.zenflow": _NOT_CONSOLIDATED,
    "zero_optimization.elastic_checkpoint": _NOT_CONSOLIDATED,
    "zero_optimization.legacy_stage1": _NOT_CONSOLIDATED,
    "zero_optimization.save_muon_momentum_buffer_in_memory": _NOT_CONSOLIDATED,
    "zero_optimization.round_robin_gradients": (
        "norms by module would be wrong with it, and it brings nothing without offload: leave "
        "it out"
    ),
    "zero_optimization.compute_grad_norm": "norms of the gradient are always reported",
    "zero_optimization.leaf_module": "the model has no such modules",
    "zero_optimization.stage3_module_granularity_threshold": (
        "each block is gathered whole as it is, and the whole model cannot be: leave it out"
    ),
    "optimizer.legacy_fusion": "it is fixed by optimizer.type",
    "comet.api_key": "config.yaml would show it: set COMET_API_KEY in the environment",
    "data_types.param_dtype": _ONE_TYPE,
    "data_types.buffer_dtype": _ONE_TYPE,
    "data_types.keep_in_fp32_modules": _ONE_TYPE,
}
# of these it is false that changes something, and true is DeepSpeed's default
HARMLESS_WHERE_TRUE = {
    "bf16.check_grad_overflow",
    "managed_gradient_accumulation",
    "zero_optimization.compute_grad_norm",
}
