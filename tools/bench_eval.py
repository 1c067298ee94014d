"""The part `eval` of tools/bench.py: the evaluator beside the most obvious loop, on random text.

The loop feeds one window at a time through the plain model and its full output layer, and takes the
loss and the hits of each window's last `last_n` targets from log-softmax and top-k.
"""

import statistics
from types import SimpleNamespace

import numpy as np
import torch

from gpt.data.windows import window
from gpt.evaluation import TOP, Evaluator
from gpt.kernels.choice import choose
from gpt.model import GPT
from tools.plain_gpt import PlainGPT

LAST_N, WINDOWS = 128, 16


def measure(device, shape, args) -> dict:
    from tools.bench import ratio

    last_n = min(LAST_N, shape.seq_len)
    tokens = np.random.default_rng(0).integers(
        shape.vocab_size, size=shape.seq_len + 1 + (WINDOWS - 1) * last_n
    )
    split = SimpleNamespace(tokens=tokens, check_ids=lambda ids: None)
    vocab = SimpleNamespace(
        byte_lengths=np.ones(shape.vocab_size, np.int64), decode=lambda ids: "x" * len(ids)
    )
    model = GPT(shape, kernels=choose("auto", device.torch, shape, device.dtype)[0])
    plain = PlainGPT(model).to(device.torch, device.dtype)
    model = model.to(device.torch, device.dtype).eval()
    evaluator = Evaluator(split, vocab, shape.seq_len, last_n, max(1, 8192 // shape.seq_len))
    tallies = {}

    def ours():
        tallies["ours"] = evaluator.run(model, device.torch).ours

    def obvious():
        tallies["obvious"] = _obvious(plain, tokens, shape.seq_len, last_n, device.torch)

    times, _ = device.in_turn({"ours": ours, "obvious": obvious}, args.rounds)
    scored = len(tokens) - 1
    found = {
        "last_n": last_n,
        "scored_tokens": scored,
        "nats": tallies["ours"].nats,
        "nats_of_obvious": tallies["obvious"][0],
        "ours_is_faster_by": ratio(times["obvious"], times["ours"]),
        **{
            f"{name}_tokens_per_second": scored / statistics.median(taken)
            for name, taken in times.items()
        },
    }
    print(
        f"eval: last_n {last_n}: {found['ours_tokens_per_second']:,.0f} scored tokens/s,"
        f" {found['ours_is_faster_by']:.2f} times the obvious loop's"
        f" {found['obvious_tokens_per_second']:,.0f}",
        flush=True,
    )
    return found


@torch.no_grad()
def _obvious(plain, tokens, seq_len, last_n, device):
    """(nats, top-1 hits, top-10 hits) over the same targets."""
    nats = 0.0
    top1 = 0
    top10 = 0
    for index in range(WINDOWS):
        w = window(index, len(tokens), seq_len, last_n)
        ids = torch.from_numpy(tokens[w.start : w.start + w.length + 1])[None].to(device)
        probabilities = plain.logits(ids[:, :-1]).float().log_softmax(-1)[0]
        own = probabilities.gather(1, ids[0, 1:, None])[-w.scored :, 0]
        hits = probabilities.topk(TOP).indices[-w.scored :] == ids[0, 1:, None][-w.scored :]
        nats -= own.sum().item()
        top1 += int(hits[:, 0].sum())
        top10 += int(hits.any(1).sum())
    return nats, top1, top10
