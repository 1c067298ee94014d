"""The part `eval` of tools/bench.py: the evaluator beside what its matrix products cost at the
device's own rate, which is its bar, and beside the most obvious loop, on random text.

The loop feeds one window at a time through the plain model and its full output layer, and takes the
loss and the hits of each window's last `last_n` targets from log-softmax and top-k.
"""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py eval`: run that")

import dataclasses
import statistics
from types import SimpleNamespace

import numpy as np
import torch

from gpt.config.shape import ModelConfig
from gpt.data.windows import FIRST_TOKEN, Window, window
from gpt.evaluation import TOP, Evaluator
from gpt.kernels.choice import choose
from gpt.model import GPT
from tools.benchmarks.device import Device, Work, ratio
from tools.benchmarks.plain_gpt import PlainGPT

LAST_N = 128
BAR = 0.9  # share of the device's matmul rate that the evaluator should reach
WINDOWS = 16


def measure(device: Device, shape: ModelConfig, work: Work) -> dict:
    last_n = min(LAST_N, shape.seq_len)
    size = shape.seq_len + 1 + (WINDOWS - 1) * last_n
    tokens = np.random.default_rng(0).integers(shape.vocab_size, size=size)
    split = SimpleNamespace(tokens=tokens, check_ids=lambda ids: None)
    byte_lengths = np.ones(shape.vocab_size, np.int64)
    vocab = SimpleNamespace(byte_lengths=byte_lengths, decode=lambda ids: "x" * len(ids), eod_id=0)
    kernels, _ = choose("auto", device.torch, shape, device.dtype)
    model = GPT(shape, kernels=kernels)
    plain = PlainGPT(model).to(device.torch, device.dtype)
    model = model.to(device.torch, device.dtype).eval()
    evaluator = Evaluator(split, vocab, shape.seq_len, last_n, max(1, 8192 // shape.seq_len))
    nats = {}

    def ours():
        nats["ours"] = evaluator.run(model, device.torch).ours.nats

    def obvious():
        nats["obvious"], _, _ = _obvious(plain, tokens, shape.seq_len, last_n, device.torch)

    times, rates = device.in_turn({"ours": ours, "obvious": obvious}, work.rounds)
    scored = len(tokens)
    windows = _windows(len(tokens), shape.seq_len, last_n)
    flops = sum(products(shape, place) for place in windows)
    shares = [flops / taken / rate for taken, rate in zip(times["ours"], rates)]
    figures = {
        "last_n": last_n,
        "scored_tokens": scored,
        "nats": nats["ours"],
        "nats_of_obvious": nats["obvious"],
        "flops": flops,
        "share_of_matmul_rate": statistics.median(shares),
        "bar": BAR,
        "ours_is_faster_by": ratio(times["obvious"], times["ours"]),
        "ours_tokens_per_second": scored / statistics.median(times["ours"]),
        "obvious_tokens_per_second": scored / statistics.median(times["obvious"]),
    }
    print(
        f"eval: last_n {last_n}: {figures['ours_tokens_per_second']:,.0f} scored tokens/s,"
        f" {figures['share_of_matmul_rate']:.0%} of the matmul rate (bar: {BAR:.0%}),"
        f" {figures['ours_is_faster_by']:.2f} times the obvious loop's"
        f" {figures['obvious_tokens_per_second']:,.0f}",
        flush=True,
    )
    return figures


def products(shape: ModelConfig, place: Window) -> int:
    """FLOPs of a window's matrix products, as gpt/config/shape.py counts a forward pass; only what
    is scored goes through the last MLP and the head."""
    seen = dataclasses.replace(shape, seq_len=place.length)
    last = 2 * (2 * shape.h_dim * shape.mlp_dim + shape.vocab_size * shape.h_dim)
    of_all = place.length * seen.matmul_flops_per_token() // 3
    return of_all - (place.length - place.scored) * last


def _windows(size: int, seq_len: int, last_n: int) -> list[Window]:
    """Those of a stream, and that of its first token."""
    places = [window(index, size, seq_len, last_n) for index in range(WINDOWS)]
    return [*places, FIRST_TOKEN]


@torch.no_grad()
def _obvious(plain, tokens, seq_len, last_n, device):
    """(nats, top-1 hits, top-10 hits) over the same targets."""
    nats = 0.0
    top1 = 0
    top10 = 0
    rows = [np.array([0, tokens[0]])]  # of the first token, after an end of a document
    scored = [1]
    for index in range(WINDOWS):
        place = window(index, len(tokens), seq_len, last_n)
        rows.append(tokens[place.start : place.start + place.length + 1])
        scored.append(place.scored)
    for row, count in zip(rows, scored):
        ids = torch.from_numpy(row).to(device)
        targets = ids[1:, None]
        log_probabilities = plain.logits(ids[None, :-1]).float().log_softmax(-1)[0]
        own = log_probabilities.gather(1, targets)[-count:, 0]
        best = log_probabilities.topk(TOP).indices
        hits = best[-count:] == targets[-count:]
        nats -= own.sum().item()
        top1 += int(hits[:, 0].sum())
        top10 += int(hits.any(1).sum())
    return nats, top1, top10
