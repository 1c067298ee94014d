"""A host's time for a micro-batch, on paper: counts against torch, sums and sentences by hand."""

import pytest
import torch
from conftest import ROOT, tiny_run
from dispatched import Launches
from tiny_engines import batch, make, on_ranks

import gpt.model
from gpt.compute.dry_run import report
from gpt.compute.hardware import DTYPES
from gpt.compute.host_time import launches
from gpt.config.resolve import load, resolve
from gpt.config.shape import ModelConfig, load_presets
from gpt.kernels import linear

MICRO = "train_micro_batch_size_per_gpu"
STAGE = "zero_optimization.stage"
SMALL = ModelConfig(**load_presets()["small"], vocab_size=16384, seq_len=512)


class Counted(Launches):
    """Those of gpt/kernels apart."""

    custom = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.custom += function.namespace == "gpt"
        return super().__torch_dispatch__(function, types, args, kwargs)


def flash_attention(q, k, v):
    """As a GPU computes it; the meta device alone would take it apart."""
    values, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    return values.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("layers", [2, 12])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_launches_are_what_torch_makes(layers, checkpointing, monkeypatch):
    """Of a micro-batch in fp16 with gradients to add to, on the meta device, which knows shapes."""
    monkeypatch.setattr(gpt.model, "causal_attention", flash_attention)
    monkeypatch.setattr(linear, "_WITH_FP32_RESULTS", {"meta"})
    config = ModelConfig(layers, 64, 128, 4, 16, 256, 32)
    with torch.device("meta"):
        model = gpt.model.GPT(config, None, checkpointing, "triton").half()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        tokens = torch.zeros(2, 33, dtype=torch.int64)
        with Counted() as counted:
            model(tokens[:, :-1], tokens[:, 1:]).backward()
    expected = launches(config, 1, checkpointing)
    assert counted.custom == expected.custom
    assert counted.total == pytest.approx(expected.torch + expected.custom, rel=0.1)


def own_launches(config, precision):
    """Of a micro-batch of the model alone, in whose dtype a CPU may compute by other operations."""
    model = gpt.model.GPT(config.model).to(DTYPES[precision])
    micro = torch.from_numpy(batch(config)[0])
    with Launches() as ran:
        model(micro[:, :-1], micro[:, 1:]).backward()
    return ran.total


def test_gradients_cost_as_many_launches_as_are_counted(capfd):
    """What two blocks more cost a micro-batch, neither the first nor the last of a step, beyond the
    model's own passes, under each ZeRO stage, beside stage 1; on the branches that DeepSpeed takes
    on CUDA."""

    def work(world, waits):
        of_two_blocks = []
        for stage in range(4):
            depths = []
            for layers in (2, 4):
                precision = "fp16" if stage else "fp32"
                run, config = make(world, stage, precision, accumulation=4, n_layers=layers)
                ends = []
                with Launches() as ran:
                    run.step(batch(config), mark=lambda part: ends.append(ran.total))
                # forward and backward of the second
                depths.append(ends[4] - ends[2] - own_launches(config, precision))
            of_two_blocks.append(depths[1] - depths[0])
        return of_two_blocks

    measured = on_ranks(1, work, capfd)
    shapes = [ModelConfig(layers, 32, 64, 2, 8, 2048, 32) for layers in (2, 4)]
    few, many = ([launches(shape, stage, False).torch for stage in range(4)] for shape in shapes)
    counted = [n - m for n, m in zip(many, few)]
    assert [n - measured[1] for n in measured] == [n - counted[1] for n in counted]


def test_the_time_of_small_is_its_launches():
    """12 layers, 149 tensors: 21 * 12 + 24 launches and an addition per tensor; 7 * 12 + 6 of them
    are custom. In microseconds, 10 each and 75 each."""
    others, custom = 21 * 12 + 24 + 149 - 90, 90 * 75
    expected = [
        others * 10 + custom,
        others * 10 + custom,
        (others + 2 * 149) * 10 + custom,
        (others + 149) * 10 + custom + 149 * 100,
    ]
    times = [1e6 * launches(SMALL, stage, False).seconds for stage in range(4)]
    assert times == pytest.approx(expected)
    again = 8 * 12 * 10 + 3 * 12 * 75  # 11 launches a block more, 3 of them custom
    assert 1e6 * launches(SMALL, 1, True).seconds == pytest.approx(expected[1] + again)


def host_lines(config):
    """The lines of --dry_run about the host, from its own to the next section."""
    lines = report(config, None).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("host "))
    return "\n".join(line.strip() for line in lines[start:])


# 24h.json computes 55,416 tokens/s: its host's 10.1 ms are 1.09 sequences of 512 tokens.
@pytest.mark.parametrize(
    "ranks, options, sentence",
    [
        (
            8,
            {},
            (
                "a GPU of 55,416 tokens/s computes it in 296 ms; one about 29 times as fast would"
                " wait for its host"
            ),
        ),
        (128, {}, "computes it in 18 ms; one about 1.8 times as fast would wait for its host"),
        (
            256,
            {},
            (
                "computes it in 9.2 ms and is host-bound: give each GPU at least 2 sequences per "
                "pass; train_batch_size 256 has them for 128 GPU(s)"
            ),
        ),
        (
            8,
            {"gpt.tokens_per_second": 3e6},
            (
                "give each GPU at least 60 sequences per pass; "
                "train_batch_size 256 has them for 4 GPU(s)"
            ),
        ),
        (
            1,
            {MICRO: 1},
            (
                "computes it in 9.2 ms and is host-bound: give each GPU at least 2 sequences "
                "per pass, --train_micro_batch_size_per_gpu 2 or more"
            ),
        ),
        (
            8,
            {STAGE: 3, MICRO: 2},
            (
                "computes it in 18 ms and is host-bound: give each GPU at least 3 "
                "sequences per pass, --train_micro_batch_size_per_gpu 4 or more"
            ),
        ),
        (
            256,
            {"gpt.tokens_per_second": 1e8},
            (
                "computes it in 0.0 ms and is host-bound: give each GPU "
                "at least 1973 sequences per pass, more than train_batch_size 256"
            ),
        ),
    ],
)
def test_the_dry_run_tells_whether_a_gpu_waits_for_its_host(ranks, options, sentence):
    lines = host_lines(load(ROOT / "ds_configs/24h.json", ranks, options))
    assert sentence in lines and "on paper, not measured" in lines
    about = "about 26 ms (18 to 40)" if STAGE in options else "about 10 ms (7 to 15)"
    assert f"host           needs {about} to launch a micro-batch" in lines


def test_what_is_not_known_is_not_estimated():
    unknown = host_lines(resolve(tiny_run(), "tiny"))
    assert "to launch a micro-batch of 4 x 32 tokens" in unknown and "tokens/s" not in unknown
    compiled = load(ROOT / "ds_configs/24h.json", 1, {"gpt.compile": "default"})
    assert "is not estimated under torch.compile" in host_lines(compiled)
    lines = report(compiled, None, 25.0).splitlines()
    row = next(line for line in lines if "launching meanwhile" in line)
    assert row.split()[-3:] == ["-"] * 3
