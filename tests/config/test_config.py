import json
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run

from gpt.compute.dry_run import report
from gpt.config.command_line import parse_command_line
from gpt.config.resolve import load, resolve
from gpt.config.saved import curve_settings
from gpt.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
SEED_OPTIONS = {  # option -> (a value, where it shows in the resolved configuration)
    "train_batch_size": ("512", lambda c: c.batch.train_batch_size),
    "gradient_accumulation_steps": ("2", lambda c: c.batch.accumulation),
    "train_micro_batch_size_per_gpu": ("16", lambda c: c.batch.micro_size),
    "decay_steps": ("777", lambda c: c.schedule.decay_steps),
    "max_train_steps": ("99", lambda c: c.options.max_train_steps),
    "max_lr": ("0.001", lambda c: c.schedule.max_lr),
    "min_lr": ("1e-05", lambda c: c.schedule.min_lr),
    "grad_clip_norm": ("0.5", lambda c: c.deepspeed["gradient_clipping"]),
    "seq_len": ("256", lambda c: c.model.seq_len),
    "seed": ("5", lambda c: c.options.seed),
    "tokens_per_second": ("1234.5", lambda c: c.options.tokens_per_second),
    "log_terminal_every": ("7", lambda c: c.options.log_terminal_every),
    "log_metrics_every": ("8", lambda c: c.options.log_metrics_every),
    "log_grads_every": ("9", lambda c: c.options.log_grads_every),
    "log_ckpt_every": ("-1", lambda c: c.options.log_ckpt_every),
    "eval_every": ("11", lambda c: c.options.eval_every),
    "max_eval_steps": ("-1", lambda c: c.options.max_eval_steps),
    "eval_batch_size": ("13", lambda c: c.options.eval_batch_size),
    "data_root": ("some/where", lambda c: c.options.data_root),
    "run_dir": ("runs/other", lambda c: str(c.run_dir)),
    "comment": ("two words", lambda c: c.options.comment),
    "logger_type": ("all", lambda c: c.options.logger_type),
    "wandb_project_name": ("mine", lambda c: c.options.wandb_project_name),
    "n_layers": ("3", lambda c: c.model.n_layers),
    "h_dim": ("96", lambda c: c.model.h_dim),
    "mlp_dim": ("100", lambda c: c.model.mlp_dim),
    "n_heads": ("5", lambda c: c.model.n_heads),
    "head_dim": ("24", lambda c: c.model.head_dim),
    "vocab_size": ("1000", lambda c: c.model.vocab_size),
}


@pytest.mark.parametrize("name", SEED_OPTIONS)
def test_every_option_of_the_seed_project_overrides_the_file(name):
    text, shown = SEED_OPTIONS[name]
    args = parse_command_line(["--ds_config", "x.json", f"--{name}", text])
    before = load(CONFIGS / "24h.json")
    after = load(CONFIGS / "24h.json", 1, args.overrides)
    assert str(shown(after)) == text
    assert shown(before) != shown(after)


def test_precedence_is_defaults_then_file_then_command_line():
    config = resolve(tiny_run(gpt={"seed": 3}), "tiny")
    assert config.options.seed == 3 and config.options.log_metrics_every == 1
    assert resolve(tiny_run(gpt={"seed": 3}), "tiny", 1, {"gpt.seed": 4}).options.seed == 4


def test_last_n_follows_a_short_context():
    assert resolve(tiny_run(gpt={"last_n": None, "seq_len": 64}), "tiny").options.last_n == 64
    assert resolve(tiny_run(gpt={"last_n": None, "seq_len": 512}), "tiny").options.last_n == 128


def test_resolving_changes_nothing_it_was_given():
    tree = tiny_run()
    before = json.dumps(tree)
    resolve(tree, "tiny", 2, {"gpt.seed": 4})
    assert json.dumps(tree) == before


def test_a_shape_needs_no_preset_and_overrides_one():
    assert resolve(tiny_run(gpt={"preset": "XL", "n_layers": 1}), "tiny").model.n_layers == 1
    with pytest.raises(UserError, match="gpt.preset is missing, and so is h_dim: name a preset"):
        resolve(tiny_run(gpt={"h_dim": None}), "tiny")


@pytest.mark.parametrize(
    "file, options, wanted",
    [  # file: its micro batch and accumulation
        ((4, 2), "--gradient_accumulation_steps 4", (8, 2, 4)),
        ((4, 2), "--train_micro_batch_size_per_gpu 3", (8, 2, 4)),
        ((None, 2), "--train_micro_batch_size_per_gpu 8", (8, 8, 1)),
        ((4, None), "--gradient_accumulation_steps 8", (8, 1, 8)),
        ((4, 2), "--train_micro_batch_size_per_gpu 1 --gradient_accumulation_steps 8", (8, 1, 8)),
        ((4, 2), "--train_batch_size 16", (16, 8, 2)),
        ((None, 2), "--train_batch_size 16", (16, 8, 2)),
        # the limit still holds for a larger batch
        ((4, None), "--train_batch_size 64", (64, 4, 16)),
        ((4, None), "--train_batch_size 64 --train_micro_batch_size_per_gpu 6", (64, 4, 16)),
    ],
)
def test_the_command_lines_batch_replaces_the_files(file, options, wanted):
    tree = tiny_run(train_micro_batch_size_per_gpu=file[0], gradient_accumulation_steps=file[1])
    args = parse_command_line(["--ds_config", "x", *options.split()])
    batch = resolve(tree, "tiny", 1, args.overrides).batch
    assert (batch.train_batch_size, batch.micro_size, batch.accumulation) == wanted


@pytest.mark.parametrize(
    "options, wanted",
    [
        ("--train_micro_batch_size_per_gpu 2", (8, 2, 2)),
        ("--gradient_accumulation_steps 3", (18, 3, 3)),
    ],
)
def test_where_no_batch_is_given_the_other_two_keep_making_it(options, wanted):
    tree = tiny_run(
        train_batch_size=None, train_micro_batch_size_per_gpu=3, gradient_accumulation_steps=2
    )
    args = parse_command_line(["--ds_config", "x", *options.split()])
    batch = resolve(tree, "tiny", 2, args.overrides).batch
    assert (batch.train_batch_size, batch.micro_size, batch.accumulation) == wanted


def limited(limit, batch=8, **options):
    return tiny_run(
        train_batch_size=batch,
        train_micro_batch_size_per_gpu=limit,
        gradient_accumulation_steps=None,
        **options,
    )


def saved(config, folder):
    """The config.yaml that a run of this configuration leaves."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict()))
    return path


def test_a_runs_config_yaml_asks_again_for_what_was_asked(tmp_path):
    first = resolve(limited(32, 256), "tiny", 64)
    assert (first.batch.micro_size, first.batch.accumulation) == (4, 1)
    again = load(saved(first, tmp_path), 64)
    assert (again.batch, again.deepspeed, again.options) == (
        first.batch,
        first.deepspeed,
        first.options,
    )
    # whatever was solved before
    for ranks, wanted in ((1, (32, 8)), (8, (32, 1)), (128, (2, 1))):
        moved = load(saved(load(tmp_path / "config.yaml", ranks), tmp_path), ranks)
        assert (moved.batch.micro_size, moved.batch.accumulation) == wanted
        assert moved.batch.micro_limit == 32
        assert curve_settings(moved.as_dict()) == curve_settings(first.as_dict())


def test_a_runs_config_yaml_tells_where_its_values_stand(tmp_path):
    path = saved(resolve(limited(32, 256), "tiny", 64), tmp_path)
    text = path.read_text().splitlines()
    config = load(path, 8)
    found = {where: source for where, _, source in config.values()}
    for where in ("gpt.h_dim", "gpt.seed", "train_batch_size", "zero_optimization.stage"):
        file, number = found[where].split(":")
        assert file == "config.yaml"
        assert text[int(number) - 1].split(":")[0].strip() == where.rpartition(".")[2]
    number = text.index("  train_micro_batch_size_per_gpu: 4") + 1
    source = found["train_micro_batch_size_per_gpu"]
    assert source.startswith(f"derived: at most 32 asked for (config.yaml:{number})")
    path.write_text(path.read_text().replace("h_dim: 32", "h_dim: 0"))
    with pytest.raises(UserError, match=r"^config.yaml:\d+: gpt.h_dim is 0, must be at least 1"):
        load(path)


def test_a_runs_config_yaml_keeps_an_accumulation_that_was_asked_for(tmp_path):
    first = resolve(tiny_run(gradient_accumulation_steps=2), "tiny", 1)
    moved = load(saved(first, tmp_path), 2)
    batch = moved.batch
    assert (batch.micro_size, batch.accumulation, batch.micro_limit) == (2, 2, None)
    tree = first.as_dict()
    # and one without the asked-for number, as an edited or an older file
    tree["batch"] = "edited"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert load(tmp_path / "config.yaml", 2).batch == moved.batch


def test_checkpoints_do_not_depend_on_how_a_batch_was_shared_out():
    """A run that began with a fixed accumulation goes on with a limit."""
    exact = resolve(tiny_run(gradient_accumulation_steps=4), "tiny", 2)
    at_most = resolve(limited(4), "tiny", 2)
    assert exact.batch.micro_size != at_most.batch.micro_size
    assert curve_settings(exact.as_dict()) == curve_settings(at_most.as_dict())


@pytest.mark.parametrize(
    "limit, batch, ranks, notice",
    [
        (32, 256, 8, None),
        (32, 128, 8, None),
        (4, 8, 1, None),
        (
            32,
            256,
            64,
            (
                "train_micro_batch_size_per_gpu allows 32 sequences per forward pass, but each of"
                " 64 rank(s) takes 4, its whole share of train_batch_size 256: fewer GPUs, or a"
                " larger batch, would fill them better"
            ),
        ),
        (
            32,
            254,
            1,
            (
                "train_micro_batch_size_per_gpu allows 32 sequences per forward pass, but each of 1"
                " rank(s) takes 2, the largest divisor of its 254 of train_batch_size 254: another"
                " number of GPUs, or another batch, would divide better"
            ),
        ),
    ],
)
def test_a_micro_batch_far_below_its_limit_is_told(limit, batch, ranks, notice):
    config = resolve(limited(limit, batch), "tiny", ranks)
    assert config.notices == ((notice,) if notice else ())
    assert config.without_fp16("slow").notices == (*config.notices, "slow")
    assert (f"notice         {notice}" in report(config, None)) == bool(notice)


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
    ("train_batch_size", True, "train_batch_size is True, not a whole number"),
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
            "scheduler.type is 'CosineLR', must be one of LanguiniCosineLR, WarmupLR, "
            "WarmupDecayLR, WarmupCosineLR, OneCycle, LRRangeTest"
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
    ("optimizer", {"type": "Adan"}, "optimizer.type is 'Adan', must be one of Adam, AdamW, SGD"),
    ("optimizer", {"params": {}}, "optimizer.type is missing"),
    (
        "optimizer",
        {"type": "Adam", "params": {"betas": 0.9}},
        "optimizer.params.betas is 0.9, not two numbers in [0, 1)",
    ),
    ("fp16", {"enabled": "yes"}, "fp16.enabled is 'yes', not true or false"),
    ("fp16", True, "fp16 is True, not a block {…}"),
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
        {"type": "SGD", "params": {"nesterov": True}},
        "optimizer.params.nesterov needs optimizer.params.momentum above 0",
    ),
    (
        "optimizer",
        {"type": "Adam", "params": {"eps": 0}},
        "optimizer.params.eps is 0, must be above 0",
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
    ("optimizer", "Adam", "optimizer is 'Adam', not a block {…}"),
    (
        "scheduler",
        {"type": "WarmupCosineLR", "params": {"total_num_steps": 10}},
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
        5e8,
        "zero_optimization.reduce_bucket_size is 500000000.0, not a whole number",
    ),
    ("zero_optimization", [1], "zero_optimization is [1], not a block {…}"),
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
        "elasticity is not supported here: it changes the batch size: set train_batch_size",
    ),
    (
        "steps_per_print",
        10,
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
    ("lr", 3, "lr is not known there: it belongs in optimizer.params.lr"),
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
    ("gpt.n_layers", 2.0, "gpt.n_layers is 2.0, not a whole number"),
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


@pytest.mark.parametrize(
    "path, value, sentence", BAD, ids=[f"{path}={value}" for path, value, _ in BAD]
)
def test_a_mistake_gets_its_sentence(path, value, sentence):
    with pytest.raises(UserError) as caught:
        resolve(edit(path, value), "tiny")
    assert str(caught.value) == f"tiny: {sentence}"


def test_five_mistakes_in_24h_come_with_their_lines(tmp_path):
    text = (CONFIGS / "24h.json").read_text()
    for right, wrong in (
        ('"gradient_clipping"', '"gradient_cliping"'),
        ('"loss_scale": 0', '"loss_scale": "0"'),
        ('"stage": 1', '"stage": 5'),
        ('"preset": "small"', '"preset": "smal"'),
        ('"train_batch_size": 256', '"train_batch_size": 257'),
    ):
        assert right in text
        text = text.replace(right, wrong)
    path = tmp_path / "24h.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path, 2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "24h.json: 5 mistakes"
    for line in lines[1:]:
        number = int(line.split("24h.json:")[1].split(":")[0])
        named = line.split()[2].rpartition(".")[2]
        assert f'"{named}"' in text.splitlines()[number - 1], line


def test_mistakes_about_the_data_stand_in_the_same_report():
    with pytest.raises(UserError) as caught:
        resolve(
            tiny_run(gradient_cliping=1),
            "tiny",
            look_further=lambda options, size: [f"{options['seed']} {size}"],
        )
    assert str(caught.value).splitlines()[2] == "  2. 0 8"


def test_parameters_of_a_mistaken_scheduler_are_not_compared():
    tree = edit("scheduler.type", [])
    tree["scheduler"]["params"]["warmup_steps"] = [1]
    with pytest.raises(UserError, match=r"^tiny: scheduler.type is \[\], "):
        resolve(tree, "tiny")


def test_a_mistaken_shape_is_told_where_it_stands(tmp_path):
    text = (
        (CONFIGS / "24h.json")
        .read_text()
        .replace('"preset": "small"', '"preset": "small", "h_dim": "768"')
    )
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"^mine.json:23: gpt.h_dim is '768', not a whole number"):
        load(tmp_path / "mine.json")


def test_values_that_contradict_each_other():
    both = tiny_run(fp16={"enabled": True}, bf16={"enabled": True})
    with pytest.raises(UserError, match="fp16.enabled and bf16.enabled are both true: choose one"):
        resolve(both, "tiny")
    for block in ("fp16", "bf16"):
        with pytest.raises(UserError, match="zero_optimization.stage is 0 with 16-bit training"):
            resolve(tiny_run(zero_optimization={"stage": 0}, **{block: {"enabled": True}}), "tiny")


def test_all_mistakes_come_in_one_report():
    tree = tiny_run(gradient_cliping=1, train_batch_size="8", gpt={"sed": 1})
    with pytest.raises(UserError) as caught:
        resolve(tree, "tiny")
    assert str(caught.value).splitlines()[0] == "tiny: 3 mistakes"
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == ["1.", "2.", "3."]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "line 1, column 2: not valid JSON"),
        ('{"gpt": {}, "gpt": {}}', "the key 'gpt' stands twice in one block"),
        ("[]", "x.json: the file is [], not a block {…}"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, text, sentence):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (
            ["--max_lrr", "1"],
            (
                "command line: unknown option --max_lrr (did you mean '--max_lr'?) (--help lists"
                " the options)"
            ),
        ),
        (
            ["--max_lr"],
            "command line: argument --max_lr: expected one argument (--help lists the options)",
        ),
        (
            ["--seed", "x"],
            "command line: argument --seed: invalid int value: 'x' (--help lists the options)",
        ),
        (
            ["--max_l", "1"],
            (
                "command line: unknown option --max_l (did you mean '--max_lr'?) (--help lists the"
                " options)"
            ),
        ),
        (["24h.json"], "command line: '24h.json' stands where an option --name was expected"),
    ],
)
def test_a_mistake_on_the_command_line_gets_its_sentence(argv, sentence):
    with pytest.raises(UserError) as caught:
        parse_command_line(["--ds_config", "x.json", *argv])
    assert str(caught.value) == sentence


def test_an_option_of_our_schedule_needs_our_schedule(tmp_path):
    tree = edit("scheduler", {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}})
    tree["optimizer"] = {"type": "Adam", "params": {"lr": 1e-3}}
    assert resolve(tree, "tiny").schedule is None
    with pytest.raises(
        UserError,
        match="--max_lr sets a parameter of LanguiniCosineLR, but the file's scheduler is WarmupLR",
    ):
        resolve(tree, "tiny", 1, {"scheduler.params.max_lr": 1.0})


def test_a_missing_file(tmp_path):
    with pytest.raises(
        UserError, match=f"cannot read the config {tmp_path}/no.json: No such file or directory"
    ):
        load(tmp_path / "no.json")
