"""The part `step` of tools/bench.py: training steps of whole models, in turn."""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py step`: run that")

import dataclasses
import gc
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from gpt.config.shape import ModelConfig
from gpt.kernels.choice import choose
from gpt.model import GPT
from tools.benchmarks.device import Device, Work, ratio
from tools.benchmarks.plain_gpt import MixedGPT, PlainGPT, UsualGPT

OURS_WIDE = "ours, fp32"


def measure(device: Device, shape: ModelConfig, work: Work) -> list:
    """One group of results per shape: {"shape", "models": {name: {"tokens_per_second", …}}}."""
    makers = {"ours": ours, "plain": plain}
    if work.compile:
        makers |= {"ours, compiled": compiled, "nanoGPT-like": nanogpt_like}
    else:
        makers["nanoGPT-like, eager"] = nanogpt_like_eager
    if not device.on_gpu and device.dtype != torch.float32:
        makers[OURS_WIDE] = ours_wide
    groups = [_group(device, shape, work, makers)]
    if have_transformers():
        square = dataclasses.replace(shape, head_dim=shape.h_dim // shape.n_heads)
        makers = {"ours": ours, "transformers": transformers_gpt2}
        groups.append(_group(device, square, work, makers))
    else:
        print("transformers' GPT2 is left out: `pip install -e '.[bench]'` brings it")
    return groups


def have_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


# Each makes a model whose products are in `dtype`, on the device.


def ours(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    kernels, _ = choose("auto", device, shape, dtype)
    return GPT(shape, kernels=kernels).to(device, dtype)


def ours_wide(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    return ours(shape, device, torch.float32)


def compiled(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    kernels, _ = choose("auto", device, shape, dtype)
    return GPT(shape, kernels=kernels, compile="default").to(device, dtype)


def plain(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    return PlainGPT(GPT(shape)).to(device, dtype)


def nanogpt_like(shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    return MixedGPT(torch.compile(UsualGPT(GPT(shape)).to(device)), dtype)


def nanogpt_like_eager(
    shape: ModelConfig, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    return MixedGPT(UsualGPT(GPT(shape)).to(device), dtype)


class _Transformers(torch.nn.Module):
    """transformers' GPT2 with our forward's arguments and loss. It shifts its labels itself."""

    def __init__(self, shape: ModelConfig):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.seq_len + 1,
            n_embd=shape.h_dim,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            n_inner=shape.mlp_dim,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.inner = GPT2LMHeadModel(config)

    def forward(self, tokens, targets):
        logits = self.inner(tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def transformers_gpt2(
    shape: ModelConfig, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    return _Transformers(shape).to(device, dtype)


class Steps:
    """A model with its optimizer; calling it makes one optimiser step on its batch.

    make: one of the above. tokens: (accumulation, rows, seq_len + 1), int64, on the device.
    """

    def __init__(
        self,
        make: Callable,
        shape: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        tokens: torch.Tensor,
    ):
        self.model = make(shape, device, dtype)
        self.tokens = tokens
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def __call__(self):
        for micro_batch in self.tokens:
            loss = self.model(micro_batch[:, :-1], micro_batch[:, 1:])
            (loss / len(self.tokens)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _random_tokens(shape, work):
    """(accumulation, micro_batch, seq_len + 1), always the same."""
    size = (work.accumulation, work.micro_batch, shape.seq_len + 1)
    return torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(0))


def _group(device, shape, work, makers) -> dict:
    """All models of one shape, in turn."""
    tokens = _random_tokens(shape, work).to(device.torch)
    steps = {
        name: Steps(make, shape, device.torch, device.dtype, tokens)
        for name, make in makers.items()
    }
    times, rates = device.in_turn(steps, work.rounds)
    models = {}
    for name, seconds in times.items():
        figures = _speed(device, shape, work, seconds, rates)
        figures["ours_is_faster_by"] = ratio(seconds, times["ours"])
        if device.on_gpu:
            figures["step_bytes"] = _gpu_bytes(steps[name])
        else:
            figures["step_bytes"] = _cpu_bytes(makers[name], shape, device.dtype, work)
        if name == OURS_WIDE:  # the rate and the peak are those of 16 bits
            figures["share_of_matmul_rate"] = figures["mfu"] = None
        models[name] = figures
    steps.clear()
    gc.collect()
    matmul_rate = statistics.median(rates)
    _print_group(shape, work, matmul_rate, models)
    return {
        "shape": dataclasses.asdict(shape),
        "matmul_flops_per_second": matmul_rate,
        "models": models,
    }


def _speed(device, shape, work, seconds, rates) -> dict:
    """The figures of a model whose steps took these seconds, beside these matmul rates."""
    tokens = work.accumulation * work.micro_batch * shape.seq_len
    flops = tokens * shape.matmul_flops_per_token()
    flops_per_second = flops / statistics.median(seconds)
    shares = [flops / taken / rate for taken, rate in zip(seconds, rates)]
    return {
        "tokens_per_second": tokens / statistics.median(seconds),
        "tokens_per_second_of_rounds": [tokens / taken for taken in seconds],
        "flops_per_second": flops_per_second,
        "share_of_matmul_rate": statistics.median(shares),
        "mfu": flops_per_second / device.peak if device.peak else None,
    }


def _print_group(shape, work, matmul_rate, models):
    print(
        f"step: {shape.n_layers} layers, h_dim {shape.h_dim},"
        f" {shape.n_heads} x {shape.head_dim} heads,"
        f" {work.accumulation} x {work.micro_batch} x {shape.seq_len} tokens;"
        f" matmul rate {matmul_rate / 1e9:,.0f} GFLOP/s"
    )
    for name, figures in models.items():
        columns = [
            f"  {name:19s} {figures['tokens_per_second']:>10,.0f} tokens/s",
            f"{_share(figures['share_of_matmul_rate'])} of the matmul rate",
            f"{figures['ours_is_faster_by']:5.2f} x ours' time",
            f"{_mebibytes(figures['step_bytes'])} MiB a step",
        ]
        if figures["mfu"] is not None:
            columns.insert(2, f"MFU {figures['mfu']:4.0%}")
        print("  ".join(columns), flush=True)


def _share(value):
    return f"{value:>4.0%}" if value is not None else "   –"


def _mebibytes(count):
    return f"{count / 2**20:>8,.0f}" if count is not None else "unknown"


def _gpu_bytes(step) -> int:
    """Peak memory of a step beside what is held between steps."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def _cpu_bytes(make, shape, dtype, work) -> int | None:
    """The same of a process of its own, by Linux's count of its resident memory; None on other
    systems."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_resident_growth, make, shape, dtype, work).result()


def _resident_growth(make, shape, dtype, work):
    size = (work.accumulation, work.micro_batch, shape.seq_len + 1)
    tokens = torch.zeros(size, dtype=torch.int64)
    step = Steps(make, shape, torch.device("cpu"), dtype, tokens[:1, :1, :2])
    step()  # makes moments, with hardly an activation
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    held = _resident("VmRSS")
    step.tokens = tokens
    step()
    return _resident("VmHWM") - held


def _resident(kind) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
