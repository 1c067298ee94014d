"""What a machine or DeepSpeed refuses of a configuration, as a sentence and before a device is
taken."""

import pytest
from conftest import tiny_run

from gpt.config.resolve import resolve
from gpt.engine import acceptance, boundary
from gpt.errors import UserError

ZERO_3 = {"stage": 3}


def config_of(**options):
    return resolve(tiny_run(**options), "tiny")


def offloaded(**values):
    block = {"device": "cpu", **values}
    return config_of(zero_optimization={**ZERO_3, "offload_optimizer": block})


@pytest.mark.parametrize(
    "config, path",
    [
        (offloaded(super_offload=True), "zero_optimization.offload_optimizer.super_offload"),
        (
            config_of(zero_optimization={**ZERO_3, "zero_quantized_weights": True}),
            "zero_optimization.zero_quantized_weights",
        ),
        (config_of(aio={"use_gds": True}), "aio.use_gds"),
        (config_of(gpt={"cuda_graph": True}), "cuda_graph"),
    ],
)
def test_what_only_nvidias_gpus_have(config, path):
    with pytest.raises(UserError) as error:
        acceptance.require_machine(config, "cpu", lambda: True)
    assert str(error.value) == (
        f"{path} needs an NVIDIA GPU, and DeepSpeed computes on 'cpu' here: leave it out"
    )
    acceptance.require_machine(config, "cuda", lambda: True)


def test_an_observer_whose_package_is_not_installed(monkeypatch):
    config = config_of(comet={"enabled": True})
    monkeypatch.setitem(acceptance.PACKAGES, "comet", "no_such_package")
    with pytest.raises(UserError, match="package 'no_such_package' is not installed here: `pip"):
        acceptance.require_machine(config, "cpu", lambda: True)


def test_a_disk_that_nothing_can_be_compiled_for():
    config = offloaded(device="nvme", nvme_path="/nvme")
    with pytest.raises(UserError, match=r"offload_optimizer.device is nvme, .* cannot be compiled"):
        acceptance.require_machine(config, "cpu", lambda: False)


@pytest.mark.parametrize(
    "path, value, problem",
    [
        ("optimizer.params.betas", [0, 0.5], "DeepSpeed refuses optimizer.params (betas must be"),
        (
            "zero_optimization.offload_optimizer",
            {"device": "cpu", "ratio": 5},
            "DeepSpeed refuses zero_optimization.offload_optimizer.ratio (",
        ),
        ("tensorboard", {"enabled": [1]}, "DeepSpeed refuses tensorboard.enabled ("),
        (
            "scheduler",
            {"type": "WarmupLR", "params": {"warmup_num_steps": 0}},
            "DeepSpeed refuses scheduler.params (warmup_num_steps must be a positive integer",
        ),
    ],
)
def test_what_deepspeed_refuses_by_itself(path, value, problem):
    """Values that our own rules would not let through."""
    config = config_of()
    block = config.deepspeed
    *parents, last = path.split(".")
    for name in parents:
        block = block[name]
    block[last] = value
    with pytest.raises(UserError) as error:
        boundary.require_acceptable(config)
    assert str(error.value).startswith(problem)


def test_what_is_accepted_on_any_number_of_ranks():
    for ranks in (1, 4):
        boundary.require_acceptable(resolve(tiny_run(), "tiny", ranks))
