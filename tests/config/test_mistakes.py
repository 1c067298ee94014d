"""Every mistake in a run's JSON gets its sentence."""

import pytest
from conftest import tiny_run

from gpt.config.resolve import resolve
from gpt.errors import UserError


def edit(path, value):
    """tiny_run() with the value at a dotted path set (None: taken out)."""
    tree = tiny_run()
    block = tree
    *parents, last = path.split(".")
    for name in parents:
        block = block.setdefault(name, {})
    block[last] = value
    return tree


BAD = [
    (
        "gradient_cliping",
        1.0,
        "gradient_cliping is not a known key (did you mean 'gradient_clipping'?)",
    ),
    (
        "zero_optimisation",
        {"stage": 1},
        "zero_optimisation is not a known key (did you mean 'zero_optimization'?)",
    ),
    (
        "zero_optimization.stag",
        1,
        "zero_optimization.stag is not a known key (did you mean 'stage'?)",
    ),
    (
        "gpt.log_term_every",
        1,
        "gpt.log_term_every is not a known key (did you mean 'log_terminal_every'?)",
    ),
    (
        "scheduler.params.warmup_step",
        1,
        "scheduler.params.warmup_step is not a known key (did you mean 'warmup_steps'?)",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"beta": [0.9, 0.95]}},
        "optimizer.params.beta is not a known key (did you mean 'betas'?)",
    ),
    ("max_train_steps", 5, "max_train_steps is not known there: it belongs in gpt.max_train_steps"),
    ("gpt.stage", 1, "gpt.stage is not known there: it belongs in zero_optimization.stage"),
    (
        "train_batch_size",
        "auto",
        'train_batch_size is "auto", which only the Hugging Face Trainer fills in: write the value',
    ),
    ("train_batch_size", 0, "train_batch_size is 0, must be at least 1"),
    ("train_batch_size", 2.5, "train_batch_size is 2.5, not a whole number"),
    ("train_batch_size", True, "train_batch_size is true, not a whole number"),
    (
        "scheduler.params.max_lr",
        "6e-4",
        "scheduler.params.max_lr is '6e-4', not a number (leave the quotes out)",
    ),
    ("scheduler.params.max_lr", -1, "scheduler.params.max_lr is -1, must be above 0"),
    (
        "scheduler.params.min_lr",
        1,
        "scheduler.params.min_lr is 1, more than scheduler.params.max_lr 0.003",
    ),
    (
        "scheduler.params.decay_steps",
        None,
        "scheduler.params.decay_steps is missing: steps until the cosine reaches min_lr",
    ),
    (
        "scheduler.params.decay_steps",
        1,
        "scheduler.params.warmup_steps is 2, more than scheduler.params.decay_steps 1",
    ),
    (
        "scheduler.type",
        "CosineLR",
        (
            "scheduler.type is 'CosineLR', must be one of LanguiniCosineLR, LinearCooldownLR, "
            "WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle, LRRangeTest"
        ),
    ),
    (
        "scheduler",
        None,
        (
            "scheduler is missing, and so is the learning rate: give a scheduler, or"
            " optimizer.params.lr for a constant one"
        ),
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"lr": 1e-3}},
        (
            "optimizer.params.lr is set beside LanguiniCosineLR, which "
            "owns the learning rate: leave it out and set scheduler.params.max_lr"
        ),
    ),
    (
        "optimizer",
        {"type": "Adan"},
        "optimizer.type is 'Adan', must be one of Adam, AdamW, SGD, Muon, Lion",
    ),
    ("optimizer", {"params": {}}, "optimizer.type is missing"),
    (
        "gpt.optimizer_file",
        "no_such.py",
        "gpt.optimizer_file: no_such.py: No such file or directory: give a file of Python",
    ),
    (
        "gpt.optimizer_options",
        {"a": 1},
        "gpt.optimizer_options are given, and no optimizer_file they are for",
    ),
    (
        "optimizer",
        {"type": "Lion", "params": {"eps": 1e-8}},
        "optimizer.params.eps is not a known key",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"betas": 0.9}},
        "optimizer.params.betas is 0.9, not two numbers in [0, 1)",
    ),
    ("fp16", {"enabled": "yes"}, "fp16.enabled is 'yes', not true or false"),
    ("fp16", True, "fp16 is true, not a block {…} (did you mean 'fp16.enabled'?)"),
    ("zero_optimization.stage", 4, "zero_optimization.stage is 4, must be one of 0, 1, 2, 3"),
    ("gradient_clipping", float("nan"), "gradient_clipping is nan, not a finite number"),
    (
        "gpt.preset",
        "smal",
        (
            "gpt.preset is 'smal' (did you mean 'small'?): the presets are nano, mini, tiny, small,"
            " medium, large, XL"
        ),
    ),
    (
        "gpt.logger_type",
        "tensorboard",
        "gpt.logger_type is 'tensorboard', must be one of none, tb, wandb, all",
    ),
    ("gpt.eval_batch_size", 0, "gpt.eval_batch_size is 0, must be at least 1"),
    ("gpt.seq_len", 0, "gpt.seq_len is 0, must be at least 2"),
    ("gpt.last_n", 33, "gpt.last_n is 33, more than gpt.seq_len 32"),
    (
        "gpt.max_train_steps",
        None,
        "gpt.max_train_steps is missing: optimiser steps of the whole run",
    ),
    ("scheduler.parms", {}, "scheduler.parms is not a known key (did you mean 'params'?)"),
    (
        "scheduler",
        {"type": "WarmupLR", "params": {"warmup_max_lr": 1, "warmup_typ": "log"}},
        "scheduler.params.warmup_typ is not a known key (did you mean 'warmup_type'?)",
    ),
    (
        "optimizer",
        {"type": "Adam", "param": {}},
        "optimizer.param is not a known key (did you mean 'params'?)",
    ),
    (
        "optimizer",
        {"type": "SGD", "params": {"betas": [0.9, 0.9]}},
        "optimizer.params.betas is not a known key",
    ),
    (
        "optimizer",
        {"type": "SGD", "params": {"momentum": 0.9, "nesterov": True, "dampening": 0.1}},
        "optimizer.params.nesterov needs optimizer.params.dampening 0: leave that out",
    ),
    (
        "gpt.step_timeout",
        1e15,
        "gpt.step_timeout is 1000000000000000.0, must be at most 100000000",
    ),
    ("gpt.tokens_per_second", 1e-320, "gpt.tokens_per_second is 1e-320, must be at least 0.001"),
    (
        "gpt.tokens_per_second",
        1e308,
        "gpt.tokens_per_second is 1e+308, must be at most 1000000000000",
    ),
    (
        "gpt.run_dir",
        "a\0b",
        "gpt.run_dir is 'a\\x00b', with a NUL or half a character, which no text may have",
    ),
    (
        "gpt.comment",
        "a\0b",
        "gpt.comment is 'a\\x00b', with a NUL or half a character, which no text may have",
    ),
    (
        "gpt.comment",
        "a" * 4097,
        "gpt.comment has 4,097 characters, and at most 4,096 are kept",
    ),
    ("gpt.seed", 10**400, "gpt.seed is beyond 9007199254740992, too large to be meant"),
    (
        "gpt.spike_zscore",
        10**400,
        "gpt.spike_zscore is beyond 9007199254740992, too large to be meant",
    ),
    ("gradient_clipping", True, "gradient_clipping is true, not a number"),
    (
        "zero_optimization.stage3_module_granularity_threshold",
        10**6,
        "zero_optimization.stage3_module_granularity_threshold is not supported here: each block is"
        " gathered whole as it is, and the whole model cannot be: leave it out",
    ),
    (
        "flops_profiler",
        {"enabled": True, "profile_step": "x"},
        "flops_profiler.profile_step is 'x', not a whole number",
    ),
    ("gpt.keep_steps", 5, "gpt.keep_steps is 5, not a list of whole numbers above 0"),
    ("gpt.keep_steps", [5, 0], "gpt.keep_steps is [5, 0], not a list of whole numbers above 0"),
    ("gpt.keep_steps", [2.5], "gpt.keep_steps is [2.5], not a list of whole numbers above 0"),
    (
        "comms_logger",
        {"enabled": True, "prof_ops": "all_reduce"},
        "comms_logger.prof_ops is 'all_reduce', not a list of texts",
    ),
    ("tensorboard", {"enabled": True, "job_name": 5}, "tensorboard.job_name is 5, not a text"),
    (
        "optimizer",
        {"type": "SGD", "params": {"nesterov": True}},
        "optimizer.params.nesterov needs optimizer.params.momentum above 0",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"eps": 0}},
        "optimizer.params.eps is 0, must be at least 1e-38",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"weight_decay": -0.1}},
        "optimizer.params.weight_decay is -0.1, must be at least 0",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"betas": [0.9, 1.0]}},
        "optimizer.params.betas is [0.9, 1.0], not two numbers in [0, 1)",
    ),
    ("optimizer", "Adam", "optimizer is 'Adam', not a block {…} (did you mean 'optimizer.type'?)"),
    (
        "scheduler",
        {"type": "WarmupCosineLR", "params": {"total_num_steps": 10, "warmup_num_steps": 5}},
        (
            "optimizer.params.lr is missing: the peak "
            "of the learning rate, which DeepSpeed would choose by itself"
        ),
    ),
    (
        "scheduler",
        {"type": "WarmupDecayLR", "params": {"warmup_max_lr": 1}},
        "scheduler.params.total_num_steps is missing",
    ),
    (
        "scheduler",
        {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3}},
        (
            "scheduler.params.cycle_momentum must be false: it would replace optimizer.params,"
            " where the decay of the moments is set"
        ),
    ),
    ("fp16.loss_scal", 0, "fp16.loss_scal is not a known key (did you mean 'loss_scale'?)"),
    ("fp16.initial_scale_power", 64, "fp16.initial_scale_power is 64, must be at most 32"),
    ("fp16.hysteresis", 0, "fp16.hysteresis is 0, must be at least 1"),
    (
        "fp16.fp16_master_weights_and_grads",
        True,
        (
            "fp16.fp16_master_weights_and_grads is not supported here: the weights must have an"
            " fp32 copy"
        ),
    ),
    ("bf16.enable", True, "bf16.enable is not a known key (did you mean 'enabled'?)"),
    (
        "zero_optimization.offload_optimizer",
        {"devise": "cpu", "device": "cpu"},
        "zero_optimization.offload_optimizer.devise is not a known key (did you mean 'device'?)",
    ),
    (
        "zero_optimization.offload_optimizer",
        {"device": "disk"},
        "zero_optimization.offload_optimizer.device is 'disk', must be one of none, cpu, nvme",
    ),
    (
        "zero_optimization.offload_optimizer",
        {"device": "nvme"},
        "zero_optimization.offload_optimizer.nvme_path is missing: the folder on the NVMe disk",
    ),
    (
        "zero_optimization.offload_param",
        {"device": "cpu"},
        "zero_optimization.offload_param needs stage 3 or more, and the stage is 1",
    ),
    (
        "zero_optimization",
        {"stage": 0, "offload_optimizer": {"device": "cpu"}},
        "zero_optimization.offload_optimizer needs stage 1 or more, and the stage is 0",
    ),
    (
        "zero_optimization.cpu_offload",
        True,
        (
            "zero_optimization.cpu_offload is not supported here: use offload_optimizer or"
            " offload_param"
        ),
    ),
    (
        "zero_optimization.reduce_bucket_size",
        5.5,
        "zero_optimization.reduce_bucket_size is 5.5, not a whole number",
    ),
    (
        "zero_optimization",
        [1],
        "zero_optimization is [1], not a block {…} (did you mean 'zero_optimization.stage'?)",
    ),
    ("tensorboard", {"enabled": "x"}, "tensorboard.enabled is 'x', not true or false"),
    ("aio", 3, "aio is 3, not a block {…}"),
    (
        "bf16",
        {"enabled": True, "check_grad_overflow": False},
        (
            "bf16.check_grad_overflow is not supported here: a gradient that "
            "is not finite must never reach the weights: leave it out"
        ),
    ),
    (
        "zero_optimization",
        {"stage": 1, "round_robin_gradients": True},
        (
            "zero_optimization.round_robin_gradients is not supported here: norms by module would"
            " be wrong with it, and it brings nothing without offload: leave it out"
        ),
    ),
    (
        "timers",
        {"throughput": {"enabled": True}},
        (
            "timers is not supported here: it makes the host wait for the GPU at every "
            "micro-batch, and the speed is in metrics.jsonl: leave it out"
        ),
    ),
    (
        "data_types",
        {"grad_accum_dtype": "foo"},
        "data_types.grad_accum_dtype is 'foo', must be one of fp16, bf16, fp32",
    ),
    (
        "elasticity",
        {},
        "elasticity is not supported here: DeepSpeed has removed it: set train_batch_size",
    ),
    (
        "steps_per_print",
        "ten",
        (
            'steps_per_print is not supported here: progress is printed by "gpt":'
            ' {"log_terminal_every"}, details by --verbose'
        ),
    ),
    (
        "activation_checkpointing",
        {},
        (
            'activation_checkpointing is not supported here: set "gpt":'
            ' {"activation_checkpointing": true}'
        ),
    ),
    ("seed", 3, "seed is not known there: it belongs in gpt.seed"),
    ("max_lr", 3, "max_lr is not known there: it belongs in scheduler.params.max_lr"),
    (
        "lr",
        3,
        "lr is not known there: it is scheduler.params.max_lr or optimizer.params.lr",
    ),
    ("gpt", 3, "gpt is 3, not a block {…}"),
    ("gpt.seed", -1, "gpt.seed is -1, must be at least 0"),
    ("gpt.seed", 10**30, "gpt.seed is beyond 9007199254740992, too large to be meant"),
    ("gpt.run_dir", "", "gpt.run_dir is empty"),
    ("gpt.data_root", 3, "gpt.data_root is 3, not a text"),
    (
        "gpt.max_eval_steps",
        0,
        (
            "gpt.max_eval_steps is 0, which scores nothing: give -1 for the whole split, or turn "
            "evaluation off with eval_every 0"
        ),
    ),
    ("gpt.max_eval_steps", -2, "gpt.max_eval_steps is -2, must be at least -1"),
    ("gpt.activation_checkpointing", 1, "gpt.activation_checkpointing is 1, not true or false"),
    ("gpt.n_heads", 0, "gpt.n_heads is 0, must be at least 1"),
    ("gpt.n_layers", 2.1, "gpt.n_layers is 2.1, not a whole number"),
    (
        "train_micro_batch_size_per_gpu",
        3,
        (
            "train_batch_size 8 is not micro batch 3 x gradient_accumulation_steps 2 x 1 rank(s):"
            " so many passes take micro batches of 4: set train_micro_batch_size_per_gpu to that,"
            " or leave one of the two out"
        ),
    ),
    (
        "torch_autocast",
        {"enabled": True},
        (
            "torch_autocast is not supported here: with fp16 it clips scaled gradients: use fp16 or"
            " bf16"
        ),
    ),
    (
        "train_micro_batch_size_per_gpu",
        0,
        "train_micro_batch_size_per_gpu is 0, must be at least 1",
    ),
    (
        "gradient_accumulation_steps",
        3,
        (
            "train_batch_size 8 is not a multiple of gradient_accumulation_steps 3 x 1 "
            "rank(s): with 1 rank(s) gradient_accumulation_steps can be 1, 2, 4, 8"
        ),
    ),
]

ADAM = {"type": "Adam", "params": {"lr": 1e-3}}
ZERO = "zero_optimization"


def scheduler(kind, **params):
    return {"scheduler": {"type": kind, "params": params}, "optimizer": ADAM}


def zero(**keys):
    return {ZERO: keys}


CYCLE = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_momentum": False}
MUON = {"optimizer": {"type": "Muon"}}
GRAPH = {"gpt": {"cuda_graph": True}}
TOGETHER = [
    (
        scheduler("WarmupLR", warmup_num_steps=0),
        "scheduler.params.warmup_num_steps is 0, must be at least 1",
    ),
    (
        scheduler("WarmupCosineLR", warmup_num_steps=0, total_num_steps=6),
        "scheduler.params.warmup_num_steps is 0, must be at least 1",
    ),
    (
        scheduler("LRRangeTest", lr_range_test_step_size=0),
        "scheduler.params.lr_range_test_step_size is 0, must be at least 1",
    ),
    (
        scheduler("LRRangeTest", lr_range_test_min_lr=0),
        "scheduler.params.lr_range_test_min_lr is 0, must be above 0",
    ),
    (
        scheduler("OneCycle", **CYCLE, cycle_first_step_size=0),
        "scheduler.params.cycle_first_step_size is 0, must be at least 1",
    ),
    (
        scheduler("OneCycle", **{**CYCLE, "cycle_min_lr": 1e-2}),
        "scheduler.params.cycle_min_lr is 0.01, more than scheduler.params.cycle_max_lr 0.001",
    ),
    (
        scheduler("WarmupDecayLR", warmup_max_lr=1e-3, warmup_num_steps=10, total_num_steps=5),
        (
            "scheduler.params.warmup_num_steps is 10, which leaves no step of total_num_steps 5 for"
            " the decay"
        ),
    ),
    (
        scheduler("WarmupCosineLR", warmup_num_steps=5, total_num_steps=5),
        (
            "scheduler.params.warmup_num_steps is 5, which leaves no step of total_num_steps 5 for"
            " the decay"
        ),
    ),
    (
        scheduler("WarmupCosineLR", total_num_steps=900),
        (
            "scheduler.params.warmup_num_steps is missing, and DeepSpeed's 1000 steps would leave"
            " none of total_num_steps 900 for the decay: give less"
        ),
    ),
    (
        scheduler("WarmupLR", warmup_min_lr=1e-2, warmup_max_lr=1e-3),
        "scheduler.params.warmup_min_lr is 0.01, more than scheduler.params.warmup_max_lr 0.001",
    ),
    (
        scheduler("WarmupLR", warmup_min_lr=1e-2),
        "scheduler.params.warmup_min_lr is 0.01, more than optimizer.params.lr 0.001",
    ),
    (
        scheduler("WarmupDecayLR", warmup_num_steps=2, total_num_steps=6),
        (
            "scheduler.params.warmup_max_lr is missing: the peak of the learning rate, which"
            " DeepSpeed would choose by itself"
        ),
    ),
    # "auto" alone is told, not that the value is missing too
    (
        scheduler("WarmupDecayLR", warmup_num_steps=2, total_num_steps=6, warmup_max_lr="auto"),
        (
            'scheduler.params.warmup_max_lr is "auto", which only the Hugging Face Trainer fills'
            " in: write the value"
        ),
    ),
    (
        {"scheduler": None, "optimizer": {"type": "Adam", "params": {"lr": "1e-3"}}},
        "optimizer.params.lr is '1e-3', not a number (leave the quotes out)",
    ),
    (zero(stage=1, allgather_bucket_size=7), f"{ZERO}.allgather_bucket_size is 7, must be even"),
    (
        {**zero(stage=2), "prescale_gradients": True},
        f"prescale_gradients is true, which stage 2 has only with {ZERO}.reduce_scatter false",
    ),
    (
        {**zero(stage=3), "gradient_predivide_factor": 2.0},
        (
            "gradient_predivide_factor is 2.0, which stage 3 has only with"
            f" {ZERO}.reduce_scatter false"
        ),
    ),
    (
        {**zero(stage=2), **GRAPH},
        f"gpt.cuda_graph is true, which needs {ZERO}.stage 1, and it is 2",
    ),
    (
        {"gpt": {"cuda_graph": True, "model_file": "modern"}},
        "gpt.cuda_graph is true, and model_file's model may compute otherwise from pass to pass,"
        " where a graph repeats the first: leave one of them out",
    ),
    (
        {"gpt": {"cuda_graph": True, "compile": "default"}},
        "gpt.cuda_graph is true, and gpt.compile is default, which may compile anew at any step,"
        " where a graph stays as it is: give --compile none",
    ),
    (
        {**zero(stage=1, offload_optimizer={"device": "cpu"}), **GRAPH},
        "gpt.cuda_graph is true, which keeps gradients on the GPU: leave offload_optimizer out",
    ),
    *(
        (
            {**options, **GRAPH},
            f"gpt.cuda_graph is true, and {name} works within each pass, where a graph is one"
            " whole: leave one of them out",
        )
        for name, options in (
            (f"{ZERO}.overlap_comm", zero(stage=1, overlap_comm=True)),
            ("wall_clock_breakdown", {"wall_clock_breakdown": True}),
            ("flops_profiler.enabled", {"flops_profiler": {"enabled": True}}),
        )
    ),
    (
        {"optimizer": {"type": "Adam", "params": {"amsgrad": True, "torch_adam": False}}},
        "optimizer.params.amsgrad is true, and DeepSpeed's Adam has none: leave torch_adam true",
    ),
    (
        zero(stage=2, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        f"{ZERO}.offload_optimizer.ratio is 0.5, which needs stage 3, and the stage is 2",
    ),
    (
        zero(stage=3, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        (
            f"{ZERO}.offload_optimizer.ratio is 0.5, which needs an Adam with"
            " optimizer.params.torch_adam false"
        ),
    ),
    (
        zero(stage=1, load_from_fp32_weights=False),
        (
            f"{ZERO}.load_from_fp32_weights is false, with which a run that goes on would be"
            " another: leave it out"
        ),
    ),
    (
        zero(stage=2, pipeline_loading_checkpoint=True),
        (
            f"{ZERO}.pipeline_loading_checkpoint is true, with which no run of stage 2 can go on:"
            " leave it out"
        ),
    ),
    (
        {"comet": {"enabled": True, "api_key": "secret"}},
        (
            "comet.api_key is not supported here: config.yaml would show it: set COMET_API_KEY in"
            " the environment"
        ),
    ),
    (
        {**MUON, **zero(stage=0)},
        f"{ZERO}.stage is 0, where DeepSpeed's Muon would take q, k and v for one matrix: give 1,"
        " 2 or 3",
    ),
    (
        {**MUON, "gradient_clipping": 1},
        "gradient_clipping is 1, and DeepSpeed would clip the steps of Muon, not its gradients:"
        " give 0",
    ),
    (
        {
            "optimizer": {"type": "Muon", "params": {"lr": 0.02}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.02}},
        },
        "scheduler.type is WarmupLR, which sets one rate for all parameters, and"
        " optimizer.params.adam_lr_scale is 0.1: give that 1, or a scheduler of the trainer's own"
        " (LanguiniCosineLR, LinearCooldownLR)",
    ),
    (
        {**MUON, **zero(stage=2), "bf16": {"enabled": True}},
        f"{ZERO}.stage is 2, where DeepSpeed loses gradients that 16-bit Muon sums in fp32: give 1"
        " or 3",
    ),
    (
        {**MUON, **zero(stage=3, reduce_scatter=True)},
        f"{ZERO}.reduce_scatter is true, and Muon at stage 3 needs whole gradients on all ranks:"
        " leave it out",
    ),
    (
        {**MUON, **zero(stage=2, offload_optimizer={"device": "cpu"})},
        f"{ZERO}.offload_optimizer works with Adam, AdamW and SGD, and the optimizer is Muon: leave"
        " it out",
    ),
    (
        {"amp": {"enabled": True}},
        "amp is not supported here: DeepSpeed has removed it: use fp16 or bf16",
    ),
    (
        {**zero(stage=0), "bf16": {"enabled": True}},
        (
            f"{ZERO}.stage is 0 with 16-bit training, where gradients that are not finite would"
            " reach the weights: use stage 1, 2 or 3, or train in fp32 with"
            " --zero_optimization.stage 0 --bf16.enabled false"
        ),
    ),
]


@pytest.mark.parametrize("options, sentence", TOGETHER, ids=[case[1] for case in TOGETHER])
def test_values_that_deepspeed_would_fail_with_get_a_sentence(options, sentence):
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(**options), "tiny")
    assert str(caught.value) == f"tiny: {sentence}"


@pytest.mark.parametrize(
    "path, value, sentence", BAD, ids=[f"{path}={value}" for path, value, _ in BAD]
)
def test_a_mistake_gets_its_sentence(path, value, sentence):
    with pytest.raises(UserError) as caught:
        resolve(edit(path, value), "tiny")
    assert str(caught.value) == f"tiny: {sentence}"
