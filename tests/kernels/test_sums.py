"""Gradients of a step's micro-batches in 16 bits: what is lost where they are summed."""

import pytest
import torch
from conftest import tiny_run
from fake_cuda import fake_cuda
from forked import fork_ranks

from gpt.checkpoint.zero_files import read_state
from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT

MICRO_BATCHES, RATE = 16, 1024.0
# Rounding to bf16 once changes a number by 2**-9 of its size at most; from one micro-batch, too, a
# gradient is rounded where it goes to other ranks and where it comes back.
ONE_MICRO_BATCH = 1.5 * 2.0**-9
BF16 = {"bf16": {"enabled": True}}


def make(stage, world, **options):
    """An engine whose update is its gradient times -RATE."""
    config = resolve(
        tiny_run(
            train_batch_size=MICRO_BATCHES * world.size,
            gradient_accumulation_steps=MICRO_BATCHES,
            scheduler=None,
            optimizer={"type": "SGD", "params": {"lr": RATE}},
            gpt={"vocab_size": 128, "seq_len": 16, "last_n": 8},
            zero_optimization={
                "stage": stage,
                "reduce_bucket_size": 5000,
                **options.pop("zero", {}),
            },
            **{**BF16, **options},
        ),
        "test",
        world.size,
    )
    with torch.device("meta"):
        model = GPT(config.model, None)
    return boundary.Engine(model, config, world, model.initial_weights(0))


def tokens_of(world):
    return torch.randint(
        128, (MICRO_BATCHES, 1, 17), generator=torch.Generator().manual_seed(world.rank)
    ).numpy()


def error_of_the_sum(run, world):
    """Of a step's gradient, against the exact sum of its micro-batches' gradients: relative, in the
    2-norm."""
    names = dict(run.module.named_parameters())
    exact = {}

    def adding(name):
        def add(gradient):
            exact[name] = exact.get(name, 0) + gradient.detach().double().flatten()

        return add

    for name, parameter in names.items():
        parameter.register_hook(adding(name))
    whole = boundary.deepspeed.utils.safe_get_full_fp32_param
    before = {name: whole(p).double().flatten() for name, p in names.items()}
    assert run.step(tokens_of(world)).applied
    updates = torch.cat(
        [(before[name] - whole(p).double().flatten()) / RATE for name, p in names.items()]
    )
    exact_updates = world.sum(torch.cat([exact[name] for name in names])) / world.size
    return ((updates - exact_updates).norm() / exact_updates.norm()).item()


CASES = [(stage, ranks, {}) for stage in (1, 2, 3) for ranks in (1, 2)]
CASES += [
    (1, 1, {"overlap_comm": True}),
    (1, 1, {"contiguous_gradients": False}),
    (2, 2, {"overlap_comm": True}),
]
CASES += [(stage, 1, {"offload_optimizer": {"device": "cpu"}}) for stage in (1, 2, 3)]


@pytest.mark.parametrize(
    "stage, ranks, zero",
    [
        case if case in (CASES[0], CASES[2]) else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_bf16_micro_batches_are_summed_in_fp32(stage, ranks, zero, tmp_path, capfd):
    """So that no more is lost than where a single micro-batch's gradient goes to its rank;
    checkpoints stay readable."""

    def work():
        world = boundary.connect()
        with fake_cuda():
            plainly = make(stage, world, data_types={"grad_accum_dtype": "bf16"}, zero=zero)
            assert error_of_the_sum(plainly, world) > ONE_MICRO_BATCH
            run = make(stage, world, zero=zero)
            # nothing of it stays behind
            assert not run.step(tokens_of(world), accept=lambda loss: False).applied
            assert error_of_the_sum(run, world) < ONE_MICRO_BATCH
        assert run.save(tmp_path, "saved", {"step": 1}) is None
        world.barrier()
        saved = read_state(tmp_path / "saved")
        run.load(tmp_path, "saved")
        run.adopt(saved, 1.0)
        for name, parameter in run.module.named_parameters():
            assert torch.equal(
                saved.weights[name], boundary.deepspeed.utils.safe_get_full_fp32_param(parameter)
            ), name
        boundary.disconnect()

    assert [code for code, _ in fork_ranks(ranks, work)] == [0] * ranks, capfd.readouterr().err


@pytest.mark.parametrize(
    "options, sums",
    [
        ({**BF16, "gradient_accumulation_steps": 4}, "fp32"),
        ({**BF16, "gradient_accumulation_steps": 1}, None),
        (
            {**BF16, "gradient_accumulation_steps": 4, "data_types": {"grad_accum_dtype": "bf16"}},
            "bf16",
        ),
        ({"fp16": {"enabled": True}, "gradient_accumulation_steps": 4}, None),
        ({"gradient_accumulation_steps": 4}, None),
    ],
)
def test_only_bf16_over_micro_batches_is_summed_in_fp32_unasked(options, sums):
    config = resolve(tiny_run(**options), "test")
    assert config.deepspeed.get("data_types", {}).get("grad_accum_dtype") == sums
    assert config.fp32_sums == (sums == "fp32")
    if sums == "fp32":
        assert (
            "data_types.grad_accum_dtype",
            "fp32",
            "derived: from bf16 and gradient_accumulation_steps",
        ) in config.values()
    again = resolve(config.tree(), "test")
    assert again.deepspeed == config.deepspeed
