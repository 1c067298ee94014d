"""Whole numbers however they are written, and keys that are switched off."""

import pytest
from conftest import tiny_run

from gpt.config.resolve import resolve
from gpt.errors import UserError


def test_a_float_that_is_whole_is_a_whole_number():
    tree = tiny_run(zero_optimization={"stage": 2, "reduce_bucket_size": 5e8})
    tree["gpt"]["n_layers"] = 2.0
    tree["scheduler"]["params"]["decay_steps"] = 6.0
    config = resolve(tree, "tiny")
    size = config.deepspeed["zero_optimization"]["reduce_bucket_size"]
    assert (size, config.model.n_layers, config.schedule.decay_steps) == (500_000_000, 2, 6)
    assert all(isinstance(v, int) for v in (size, config.model.n_layers))


@pytest.mark.parametrize(
    "path, value",
    [
        ("amp", {"enabled": False}),
        ("elasticity", {"enabled": False, "max_train_batch_size": 2000}),
        ("sparse_gradients", False),
        ("fp16.auto_cast", False),
        ("zero_optimization.cpu_offload", False),
        ("zero_optimization.round_robin_gradients", False),
        ("activation_checkpointing", {"partition_activations": False}),
        ("timers", {"throughput": {"enabled": False}}),
        ("bf16.check_grad_overflow", True),
        ("comms_logger", {"enabled": False, "verbose": True}),
        ("comms_logger", {}),
        ("tensorboard", {"enabled": False, "output_path": "", "job_name": ""}),
        ("wandb", {"team": "", "project": ""}),
        ("flops_profiler", {"enabled": False, "profile_step": 1}),
        ("_comment", "what this is"),
        ("zero_optimization._comment_on_stages", ["a", "list"]),
    ],
)
def test_what_is_switched_off_is_left_out(path, value):
    tree = tiny_run()
    *blocks, name = path.split(".")
    block = tree
    for key in blocks:
        block = block.setdefault(key, {})
    block[name] = value
    config = resolve(tree, "tiny")
    assert config.deepspeed == resolve(tiny_run(), "tiny").deepspeed


def test_what_is_switched_on_is_refused_or_stays():
    for key in ("amp", "elasticity", "timers"):
        with pytest.raises(UserError, match=f"^tiny: {key} is not supported here: "):
            resolve(tiny_run(**{key: {"enabled": True}}), "tiny")
    logger = {"enabled": True}
    assert resolve(tiny_run(comms_logger=logger), "tiny").deepspeed["comms_logger"] == logger


@pytest.mark.parametrize("betas", [[0, 0.95], [0.9, 0]])
def test_a_whole_number_among_betas_is_a_float(betas):
    optimizer = {"type": "Adam", "params": {"betas": betas}}
    resolved = resolve(tiny_run(optimizer=optimizer), "tiny").deepspeed["optimizer"]["params"]
    assert resolved["betas"] == betas
    assert all(type(value) is float for value in resolved["betas"])


@pytest.mark.parametrize("value", [2000, 1e5])
def test_how_often_deepspeed_prints_is_told_to_be_left_out(value):
    config = resolve(tiny_run(steps_per_print=value), "tiny")
    assert "steps_per_print" not in config.deepspeed
    assert any(notice.startswith("steps_per_print is left out") for notice in config.notices)
