"""From a run's JSON and the command line to values: who overrides whom, and what is shipped."""

import json
import math
from pathlib import Path

import pytest
from conftest import tiny_run

from gpt.config.batch import ACCUMULATION, BATCH, MICRO
from gpt.config.command_line import parse_command_line
from gpt.config.resolve import load, resolve
from gpt.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


# option -> (a value, where it shows in the resolved configuration)
SEED_OPTIONS = {
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
    "file, options, expected",
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
def test_the_command_lines_batch_replaces_the_files(file, options, expected):
    tree = tiny_run(train_micro_batch_size_per_gpu=file[0], gradient_accumulation_steps=file[1])
    args = parse_command_line(["--ds_config", "x", *options.split()])
    batch = resolve(tree, "tiny", 1, args.overrides).batch
    assert (batch.train_batch_size, batch.micro_size, batch.accumulation) == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ("--train_micro_batch_size_per_gpu 2", (8, 2, 2)),
        ("--gradient_accumulation_steps 3", (18, 3, 3)),
    ],
)
def test_where_no_batch_is_given_the_other_two_keep_making_it(options, expected):
    tree = tiny_run(
        train_batch_size=None, train_micro_batch_size_per_gpu=3, gradient_accumulation_steps=2
    )
    args = parse_command_line(["--ds_config", "x", *options.split()])
    batch = resolve(tree, "tiny", 2, args.overrides).batch
    assert (batch.train_batch_size, batch.micro_size, batch.accumulation) == expected


@pytest.mark.parametrize(
    "name, preset, batch, accumulation, steps, speed",
    [
        ("6h", "small", 128, 4, 18265, 55416),
        ("12h", "small", 128, 4, 36529, 55416),
        ("24h", "small", 256, 8, 36529, 55416),
        ("48h", "medium", 256, 32, 21908, 16618),
        ("96h", "medium", 256, 32, 43817, 16618),
    ],
)
def test_compute_classes_are_the_published_ones(name, preset, batch, accumulation, steps, speed):
    config = load(CONFIGS / f"{name}.json")
    options = config.options
    assert (options.preset, config.batch.train_batch_size, config.batch.accumulation) == (
        preset,
        batch,
        accumulation,
    )
    assert options.max_train_steps == config.schedule.decay_steps == steps
    assert options.tokens_per_second == speed
    hours = steps * batch * 512 / speed / 3600
    assert hours == pytest.approx(int(name[:-1]), rel=1e-4)
    assert (config.schedule.max_lr, config.schedule.min_lr, config.schedule.warmup_steps) == (
        6e-4,
        6e-6,
        200,
    )
    assert (options.log_terminal_every, options.eval_every) == (100, 500)
    assert (options.log_grads_every, options.log_ckpt_every) == (1000, 1000)
    adam = config.deepspeed["optimizer"]
    assert (
        adam["type"] == "Adam"
        and adam["params"]["betas"] == [0.9, 0.95]
        and adam["params"]["eps"] == 1e-8
    )
    assert adam["params"]["weight_decay"] == 0 and config.deepspeed["gradient_clipping"] == 0
    assert config.precision == "fp16" and config.deepspeed["fp16"]["loss_scale"] == 0
    assert config.zero_stage == 1
    assert (config.model.seq_len, config.model.vocab_size) == (512, 16384)


RANKS = (1, 2, 4, 8, 64)
# file -> (micro batch, accumulation) on so many ranks
SHARED_OUT = {
    "6h": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "12h": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "24h": [(32, 8), (32, 4), (32, 2), (32, 1), (4, 1)],
    "48h": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "96h": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "mini": [(32, 4), (32, 2), (32, 1), (16, 1), (2, 1)],
    "large_zero2": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "xl_zero3": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
    "xl_zero3_offload": [(8, 32), (8, 16), (8, 8), (8, 4), (4, 1)],
}


def test_shipped_batches_on_any_number_of_gpus():
    for name, shares in SHARED_OUT.items():
        for ranks, (micro_size, accumulation) in zip(RANKS, shares, strict=True):
            config = load(CONFIGS / f"{name}.json", ranks)
            batch, deepspeed = config.batch, config.deepspeed
            assert batch.micro_size == deepspeed[MICRO] == micro_size
            assert batch.accumulation == deepspeed[ACCUMULATION] == accumulation
            assert micro_size * accumulation * ranks == batch.train_batch_size == deepspeed[BATCH]


def test_every_shipped_config_loads_and_is_plain_json():
    files = sorted(CONFIGS.glob("*.json"))
    assert {f.stem for f in files} >= {"quickstart", "mini", "6h", "12h", "24h", "48h", "96h"}
    for file in files:
        config = load(file)
        assert config.zero_stage >= 1
        assert json.loads(file.read_text())["gradient_clipping"] == 0.0
        assert math.isfinite(config.schedule.lr(1))
