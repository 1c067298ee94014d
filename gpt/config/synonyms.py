"""What other trainers call the values of a run, and where they are here; and what people look for
that a run does not have."""

from gpt.config.option_names import homes, option_of
from gpt.config.refused_keys import REFUSED

# dotted path of a value -> what else it is called
_OTHER_NAMES = {
    "train_batch_size": "batch_size batch bs global_batch_size total_batch_size",
    "train_micro_batch_size_per_gpu": (
        "micro_batch micro_batch_size mbs device_batch_size per_device_batch_size"
        " per_device_train_batch_size"
    ),
    "gradient_accumulation_steps": (
        "grad_accum grad_accum_steps gradient_accumulation accumulation accumulation_steps accum"
    ),
    "gradient_clipping": (
        "clip clipping grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val"
    ),
    "optimizer.type": "optimizer optimiser optim",
    "optimizer.params.weight_decay": "weight_decay wd",
    "optimizer.params.betas": "betas beta beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.params.eps": "eps epsilon adam_eps adam_epsilon",
    "scheduler.type": "scheduler schedule lr_scheduler lr_scheduler_type lr_decay_style",
    "scheduler.params.min_lr": "lr_min min_learning_rate end_lr final_lr",
    "scheduler.params.warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps",
    "scheduler.params.decay_steps": "decay decay_iters lr_decay_iters lr_decay_steps",
    "scheduler.params.cooldown_share": "cooldown cooldown_frac decay_frac warmdown_ratio",
    "fp16.enabled": "fp16 float16 half",
    "bf16.enabled": "bf16 bfloat16",
    "zero_optimization.stage": "zero zero_stage zero_optimization",
    "zero_optimization.offload_optimizer.device": "offload cpu_offload",
    "gpt.activation_checkpointing": (
        "gradient_checkpointing checkpoint_activations recompute_activations"
    ),
    "gpt.comment": "note notes description",
    "gpt.compile": "torch_compile",
    "gpt.data_root": "data data_dir data_path dataset dataset_dir",
    "gpt.eval_every": "eval_interval eval_steps val_every val_interval",
    "gpt.h_dim": "n_embd d_model hidden_size hidden_dim embed_dim dim width",
    "gpt.head_dim": "d_head head_size",
    "gpt.init_from": "pretrained from_pretrained load load_from init_weights",
    "gpt.keep_last": "keep_latest_k save_total_limit",
    "gpt.log_ckpt_every": "save_every save_interval save_steps ckpt_every checkpoint_every",
    "gpt.log_terminal_every": "log_every log_interval logging_steps print_every",
    "gpt.logger_type": "logger report_to use_wandb wandb tensorboard",
    "gpt.max_eval_steps": "eval_iters eval_batches",
    "gpt.max_train_steps": (
        "steps max_steps num_steps total_steps train_steps training_steps num_train_steps iters"
        " max_iters train_iters iterations"
    ),
    "gpt.mlp_dim": "n_inner d_ff ffn_dim ffn_hidden_size intermediate_size",
    "gpt.n_heads": "n_head num_heads num_attention_heads heads",
    "gpt.n_layers": "n_layer num_layers num_hidden_layers layers depth",
    "gpt.preset": "model model_size model_name size",
    "gpt.run_dir": "out out_dir output output_dir save_dir log_dir ckpt_dir checkpoint_dir",
    "gpt.seed": "seeds random_seed",
    "gpt.seq_len": (
        "context context_length context_len ctx_len n_ctx block_size n_positions max_seq_len"
        " seq_length sequence_length"
    ),
    "gpt.vocab_size": "vocab n_vocab vocabulary_size",
    "gpt.wandb_project_name": "wandb_project project project_name",
}
_OF_TWO = {
    "scheduler.params.max_lr optimizer.params.lr": "lr learning_rate peak_lr base_lr",
    "fp16.enabled bf16.enabled": "precision dtype mixed_precision",
}
_FLAGS = {
    "ds_config": "config config_file deepspeed_config",
    "resume": "resume_from resume_from_checkpoint restart",
}
_DROPOUT = "the model has no dropout"
_EPOCHS = "a run is as long as max_train_steps, and --dry_run tells how often that reads the data"
_STOPPING = "a run ends at max_train_steps, or by a signal, which saves it"
_OTHER_MODEL = "it would be another model: docs/extending.md tells how to make one"
_LAUNCHER = "it is the launcher's, and stands before gpt/train.py"
# what people look for -> why there is no such value
ABSENT = {
    **dict.fromkeys(("dropout", "attn_dropout", "resid_dropout"), _DROPOUT),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), _EPOCHS),
    **dict.fromkeys(("early_stopping", "patience"), _STOPPING),
    **dict.fromkeys(("rope", "rotary", "alibi", "rmsnorm", "tie_weights", "swiglu"), _OTHER_MODEL),
    **dict.fromkeys(
        ("num_gpus", "num_nodes", "nproc_per_node", "hostfile", "master_port", "master_addr"),
        _LAUNCHER,
    ),
    **dict.fromkeys(("device", "gpu", "gpus"), "each rank has the device that its launcher gives"),
}


def _by_name() -> dict[str, tuple[str, ...]]:
    places = {}
    for paths, names in (*_OTHER_NAMES.items(), *_OF_TWO.items()):
        for name in names.split():
            places[name] = tuple(paths.split())
    return places


# name -> dotted paths of what may be meant
SYNONYMS = _by_name()
_FLAG_OF = {name: flag for flag, names in _FLAGS.items() for name in names.split()}


def hint_for_option(name: str) -> str | None:
    """What follows "unknown option --NAME"; None where nothing is known of the name."""
    if name in ABSENT:
        return f": {ABSENT[name]}"
    if name in _FLAG_OF:
        return f" (did you mean '--{_FLAG_OF[name]}'?)"
    paths = SYNONYMS.get(name, ())
    if not paths and name in REFUSED:
        return f": {REFUSED[name]}"
    options = [f"'{option_of(path)}'" for path in paths or homes(name)]
    return f" (did you mean {' or '.join(options)}?)" if options else None


def hint_for_block(path: str, prefix: str = "") -> str:
    """The words (did you mean …?) for a value that was sought where a block is; empty where nothing
    is known of it. prefix: what stands before the value's path."""
    meant = [f"'{prefix}{inner}'" for inner in SYNONYMS.get(path, ())]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def hint_for_key(name: str, where: str) -> str | None:
    """What is wrong with a key of a run's JSON that stands at the dotted path `where`; None where
    nothing is known of its name."""
    if name in ABSENT:
        return f"is not a known key: {ABSENT[name]}"
    paths = [path for path in SYNONYMS.get(name, ()) if path != where]
    if not paths:
        return None
    block = where.rpartition(".")[0]
    if len(paths) == 1 and paths[0].rpartition(".")[0] == block:
        return f"is not a known key (did you mean {paths[0].rpartition('.')[2]!r}?)"
    return f"is not known there: it is {' or '.join(paths)}"
