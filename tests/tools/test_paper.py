"""The speed model of `tools/bench.py --paper`: held against what is published of another program,
and against sums by hand."""

import importlib
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from gpt.config.shape import ModelConfig
from tools.benchmarks import launches, paper
from tools.benchmarks.launches import Launch

pytest.importorskip("triton")

H100 = paper.GPUS["H100 SXM"]
TINY = ModelConfig(2, 64, 256, 4, 16, vocab_size=128, seq_len=32)


def stream(name, size, count=1):
    return [Launch(name, launches.MEMORY, 1, size)] * count


def products(rows, columns, inner):
    """Forward, for the input's gradient, for the weight's."""
    sides = {
        launches.PRODUCT: (rows, columns, inner),
        launches.INPUT_GRADIENT: (rows, inner, columns),
        launches.WEIGHT_GRADIENT: (columns, inner, rows),
    }
    size = 2 * (rows * columns + rows * inner + columns * inner)
    for kind, (m, n, k) in sides.items():
        yield Launch("mm", kind, 1, size, 2 * m * n * k, (m, n, k))


def llm_c():
    """A step of llm.c's GPT-2 124M on one of eight GPUs, by its kernels: 64 x 1024 tokens, no
    accumulation, attention on packed q, k and v, ZeRO 1."""
    n, t, c, v, layers = 65536, 1024, 768, 50304, 12
    unit = 2 * n * c
    launched = [
        *stream("encoder, both ways", 5 * unit),
        *stream("norms with residuals, both ways", 4 * unit, 2 * (2 * layers + 1)),
        *stream("GELU", 8 * unit, layers),
        *stream("GELU, backward", 12 * unit, layers),
        *stream("sums for the biases", 9 * unit, layers),
        *stream("cross-entropy", 2 * 2 * n * v),
        *stream("AdamW of an eighth", 30 * 124_000_000 // 8),
        *products(n, v, c),
    ]
    for columns, inner in ((3 * c, c), (c, c), (4 * c, c), (c, 4 * c)):
        launched += [*products(n, columns, inner)] * layers
    flops = 2 * n * t * c
    launched += [Launch("attention", launches.ATTENTION, 1, 4 * unit, flops)] * layers
    backward = Launch("…", launches.ATTENTION_BACKWARD, 3, 8 * unit, 2.5 * flops)
    return launched + [backward] * layers


# ms of 524,288 tokens on eight GPUs: modded-nanogpt's records (track_1_short, 2024-10-13_llmc), and
# llm.c's discussion 481 (10^10 tokens in 90 minutes); the sums over GPUs at 3 and 5 ms
@pytest.mark.parametrize(
    "device, published, summing", [("H100 SXM", 140, 3), ("A100 80GB", 283, 5)]
)
def test_the_same_rates_give_what_is_published_of_llm_c(device, published, summing):
    gpu = paper.GPUS[device]
    computed = sum(paper.milliseconds(gpu, launch) for launch in llm_c()) + summing
    print(f"{device}: {computed:.0f} ms on paper, {published} published")
    assert computed == pytest.approx(published, rel=0.1)


def test_a_launch_takes_the_longer_of_its_times_and_a_gap():
    memory = Launch("copy", launches.MEMORY, 2, 26_000_000_000)
    assert paper.milliseconds(H100, memory) == pytest.approx(10 + 0.0022)
    assert paper.least_milliseconds(H100, memory) == pytest.approx(26 / 3.35)
    size = (16384, 3072, 768)
    product = Launch("mm", launches.PRODUCT, 1, 1000, 580e9, size)
    assert paper.milliseconds(H100, product) == pytest.approx(1 + 0.0011)
    transposed = product._replace(kind=launches.WEIGHT_GRADIENT, size=(3072, 768, 16384))
    assert paper.milliseconds(H100, transposed) == pytest.approx(580 / 490 + 0.0011)


def test_a_step_is_its_micro_batches_and_an_update():
    one, three = (paper.step(TINY, 2, accumulation) for accumulation in (1, 3))
    update = one.operations["update"]
    assert update == three.operations["update"]
    assert len(three.operations["gradients added up"]) == 2
    of_passes = len(one.all()) - 1
    assert len(three.all()) == 3 * of_passes + 2 + 1
    assert three.tokens == 3 * one.tokens == 3 * 2 * 32
    assert three.flops == three.tokens * TINY.matmul_flops_per_token()


@pytest.fixture
def bench(monkeypatch):
    """The command's module, which puts the project's folder first on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return importlib.import_module("tools.bench")


def test_the_command_says_that_it_is_a_model(bench, tmp_path, monkeypatch, capsys):
    written = tmp_path / "paper.json"
    options = ["--paper", "--preset", "nano", "--micro_batch", "2", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["tools/bench.py", *options])
    bench.main()
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert "computed" in first and "measured nowhere" in first and "nano" in second
    facts = json.loads(written.read_text(encoding="utf-8"))
    for device, speed in facts["devices"].items():
        line = next(line for line in lines if line.startswith(device))
        assert f"{speed['tokens_per_second']:,.0f} tokens/s (±15%)" in line
        total = sum(row["milliseconds"][device] for row in facts["operations"])
        assert speed["milliseconds"] == pytest.approx(total)
        assert 0 < speed["mfu"] < speed["limit_mfu"] < 1


@pytest.mark.parametrize("rest", [["step"], ["--rounds", "3"], ["--precision", "fp32"]])
def test_what_is_measured_does_not_go_with_it(rest):
    run = subprocess.run(
        [sys.executable, "tools/bench.py", "--paper", *rest],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    sentence = "leave out the parts, --rounds, --png, --compile and --precision"
    assert f"--paper measures nothing, and is of bf16: {sentence}" in run.stderr


@pytest.mark.parametrize("option", ["--json", "--png"])
def test_what_could_not_be_written_is_not_measured(option, load_tool):
    mistake = load_tool("bench").mistake("step", option, "no/such/folder/file")
    assert mistake == (
        f"{option} no/such/folder/file: give the name of a file in a folder that exists"
    )
