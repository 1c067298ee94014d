"""The part `step` of tools/bench.py: training steps of whole models, in turn."""

import dataclasses
import gc
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from gpt.config.shape import ModelConfig
from gpt.kernels.choice import choose
from gpt.model import GPT
from tools.plain_gpt import PlainGPT


def measure(device, shape: ModelConfig, args) -> list:
    """One group of results per shape: {"shape", "models": {name: {"tokens_per_second", …}}}."""
    groups = [
        _group(
            device,
            shape,
            args,
            {"ours": ours, "plain": plain} | ({"ours, compiled": compiled} if args.compile else {}),
        )
    ]
    if have_transformers():
        square = dataclasses.replace(shape, head_dim=shape.h_dim // shape.n_heads)
        groups.append(
            _group(device, square, args, {"ours": ours, "transformers": transformers_gpt2})
        )
    else:
        print("transformers' GPT2 is left out: `pip install -e '.[bench]'` brings it")
    return groups


def have_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def ours(shape, device, dtype):
    return GPT(shape, kernels=choose("auto", device, shape, dtype)[0])


def compiled(shape, device, dtype):
    return GPT(shape, kernels=choose("auto", device, shape, dtype)[0], compile="default")


def plain(shape, device, dtype):
    return PlainGPT(GPT(shape))


class _Transformers(torch.nn.Module):
    """transformers' GPT2 with our forward's arguments and loss. It shifts its labels itself."""

    def __init__(self, shape):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.inner = GPT2LMHeadModel(
            GPT2Config(
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
        )

    def forward(self, tokens, targets):
        logits = self.inner(tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def transformers_gpt2(shape, device, dtype):
    return _Transformers(shape)


class Steps:
    """A model with its optimizer; calling it makes one optimiser step on `batch`, (accumulation,
    rows, seq_len + 1)."""

    def __init__(self, make, shape, device, batch):
        self.model = make(shape, device, batch["dtype"]).to(device, batch["dtype"])
        self.batch = batch["tokens"]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def __call__(self):
        for micro in self.batch:
            (self.model(micro[:, :-1], micro[:, 1:]) / len(self.batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _batch(shape, args, device, dtype):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        shape.vocab_size,
        (args.accumulation, args.micro_batch, shape.seq_len + 1),
        generator=generator,
    )
    return {"tokens": tokens.to(device), "dtype": dtype}


def _group(device, shape, args, makers) -> dict:
    from tools.bench import ratio

    batch = _batch(shape, args, device.torch, device.dtype)
    steps = {name: Steps(make, shape, device.torch, batch) for name, make in makers.items()}
    times, rates = device.in_turn(steps, args.rounds)
    tokens = args.accumulation * args.micro_batch * shape.seq_len
    flops, models = tokens * shape.matmul_flops_per_token(), {}
    for name, taken in times.items():
        models[name] = {
            "tokens_per_second": tokens / statistics.median(taken),
            "tokens_per_second_of_rounds": [tokens / seconds for seconds in taken],
            "flops_per_second": flops / statistics.median(taken),
            "share_of_matmul_rate": statistics.median(
                flops / t / rate for t, rate in zip(taken, rates)
            ),
            "mfu": flops / statistics.median(taken) / device.peak if device.peak else None,
            "ours_is_faster_by": ratio(taken, times["ours"]),
            "step_bytes": (
                _gpu_bytes(steps[name]) if device.on_gpu else _cpu_bytes(makers[name], shape, args)
            ),
        }
    steps.clear()
    gc.collect()
    print(
        f"step: {shape.n_layers} layers, h_dim {shape.h_dim}, {shape.n_heads} x {shape.head_dim}"
        f" heads, {args.accumulation} x {args.micro_batch} x {shape.seq_len} tokens; matmul rate"
        f" {statistics.median(rates) / 1e9:,.0f} GFLOP/s"
    )
    for name, found in models.items():
        mfu = f"  MFU {found['mfu']:4.0%}" if found["mfu"] is not None else ""
        print(
            f"  {name:16s} {found['tokens_per_second']:>10,.0f} tokens/s "
            f" {found['share_of_matmul_rate']:>4.0%} of the matmul rate{mfu} "
            f" {found['ours_is_faster_by']:5.2f} x ours' time  {_mebibytes(found['step_bytes'])}"
            " MiB a step",
            flush=True,
        )
    return {
        "shape": dataclasses.asdict(shape),
        "matmul_flops_per_second": statistics.median(rates),
        "models": models,
    }


def _mebibytes(count):
    return f"{count / 2**20:>8,.0f}" if count is not None else "unknown"


def _gpu_bytes(step) -> int:
    """Peak memory of a step beside what is held between steps."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def _cpu_bytes(make, shape, args) -> int | None:
    """The same of a process of its own, by Linux's count of its resident memory; None on other
    systems."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_grown, make, shape, args.accumulation, args.micro_batch).result()


def _grown(make, shape, accumulation, micro_batch):
    tokens = torch.zeros(accumulation, micro_batch, shape.seq_len + 1, dtype=torch.int64)
    step = Steps(make, shape, torch.device("cpu"), {"tokens": tokens, "dtype": torch.float32})
    step.batch = tokens[:1, :1, :2]
    step()  # makes moments, with hardly an activation
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    held = _resident("VmRSS")
    step.batch = tokens
    step()
    return _resident("VmHWM") - held


def _resident(kind) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
