"""The seed project's loader, model and evaluation, written again from their description, slowly and
plainly, and its files on disk: what imported data and weights are held against.
"""

import itertools
import math
import random

import numpy as np
import torch
import torch.nn.functional as F

LISTS = {
    "train": "train",
    "test": "test_iid",
    "langlearn": "test_langlearn",
    "discworld": "test_discworld",
    "java": "test_java",
    "stats": "test_statistics",
    "wood": "test_woodworking",
}
END = 2
VOCAB = "books_2048"
TEXTS = [
    "The whale, the whale!\n",
    "naïve café — 🥐🥐\n" * 40,
    "Call me Ishmael. Some years ago, never mind how long.\n" * 9,
]


def random_documents(name, count, longest, seed):
    rng = random.Random(seed)
    return {
        f"{name} {i}": [rng.randint(3, 2047) for _ in range(rng.randint(1, longest))]
        for i in range(count)
    }


def write_books(root, splits, vocab=VOCAB, dtype=np.uint16):
    """splits: {split: {name: ids}}. Writes the file lists and a file for each document."""
    (root / vocab / "files").mkdir(parents=True)
    for split, documents in splits.items():
        rows = [(f"files/{name}.npy", str(len(ids))) for name, ids in documents.items()]
        np.save(root / f"file_list_{LISTS[split]}.npy", np.array(rows))
        for name, ids in documents.items():
            np.save(root / vocab / "files" / f"{name}.npy", np.array(ids, dtype))
    return root


def write_sample_books(root, pieces):
    """Random documents, TEXTS in the SentencePieceProcessor's `pieces`, and a short document."""
    splits = {
        "train": random_documents("a", 30, 90, 1),
        "test": {f"text {i}": pieces.encode(text) for i, text in enumerate(TEXTS)},
        "stats": random_documents("s", 3, 300, 2),
        "wood": {"w": [*range(300, 341)]},
    }
    return write_books(root, splits)


def queues(root, split, vocab, count):
    """The documents of each of `count` streams: one after another to that with the fewest tokens so
    far."""
    queues, loads = [[] for _ in range(count)], [0] * count
    for path, tokens in np.load(root / f"file_list_{LISTS[split]}.npy"):
        shortest = int(np.argmin(loads))
        queues[shortest].append(root / vocab / path)
        loads[shortest] += int(tokens)
    return queues


def tokens_of(paths):
    for path in paths:
        yield from np.load(path).tolist()
        yield END


def batches(root, split, vocab, count, seq_len):
    """Training batches, lists of `count` rows of seq_len + 1 ids, without end: each stream begins
    again by itself."""
    streams = [tokens_of(itertools.cycle(paths)) for paths in queues(root, split, vocab, count)]
    rows = [[next(stream)] for stream in streams]
    while True:
        rows = [[row[-1], *itertools.islice(stream, seq_len)] for row, stream in zip(rows, streams)]
        yield rows


class SeedGPT:
    """forward(tokens (B, T)) -> logits (B, T, V), from a state dict in the seed project's names."""

    def __init__(self, state, head_dim):
        self.w = state
        self.head_dim = head_dim
        self.layers = 1 + max(
            int(name.split(".")[1]) for name in state if name.startswith("layers.")
        )

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred
            / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def attention(self, x, name):
        q, k, v = (self.linear(x, f"{name}.linear_{letter}") for letter in "QKV")
        heads = []
        for at in range(0, q.shape[-1], self.head_dim):
            part = slice(at, at + self.head_dim)
            scores = q[..., part] @ k[..., part].transpose(1, 2) * self.head_dim**-0.5
            mask = self.w[f"{name}.mask"][0, 0, : x.shape[1], : x.shape[1]]
            heads.append(scores.masked_fill(mask == 0, -math.inf).softmax(-1) @ v[..., part])
        return self.linear(torch.cat(heads, -1), f"{name}.linear_O")

    def mlp(self, x, name):
        x = self.linear(x, f"{name}.c_fc")
        return self.linear(
            0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            f"{name}.c_proj",
        )

    def __call__(self, tokens):
        x = self.w["input_embedding.weight"][tokens] * math.sqrt(
            self.w["input_embedding.weight"].shape[1]
        )
        x = x + self.w["position_embedding.weight"][: tokens.shape[1]]
        for layer in range(self.layers):
            x = x + self.attention(self.norm(x, f"layers.{layer}.ln1"), f"layers.{layer}.attn")
            x = x + self.mlp(self.norm(x, f"layers.{layer}.ln2"), f"layers.{layer}.mlp")
        return self.norm(x, "ln_f") @ self.w["linear.weight"].T


def random_state(
    vocab_size, seq_len=32, layers=2, h_dim=24, mlp_dim=40, width=32, seed=0, longest=64
):
    """A state dict of random fp32 weights, biases and norms included, in the seed
    project's names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.05, mean=0.0):
        return mean + std * torch.randn(*shape, generator=generator)

    state = {
        "input_embedding.weight": normal(vocab_size, h_dim),
        "position_embedding.weight": normal(seq_len, h_dim),
    }
    for layer in range(layers):
        name = f"layers.{layer}"
        for norm in ("ln1", "ln2"):
            state |= {
                f"{name}.{norm}.weight": normal(h_dim, std=0.2, mean=1.0),
                f"{name}.{norm}.bias": normal(h_dim),
            }
        for letter, shape in (
            ("Q", (width, h_dim)),
            ("K", (width, h_dim)),
            ("V", (width, h_dim)),
            ("O", (h_dim, width)),
        ):
            state |= {
                f"{name}.attn.linear_{letter}.weight": normal(*shape, std=0.2),
                f"{name}.attn.linear_{letter}.bias": normal(shape[0]),
            }
        state[f"{name}.attn.mask"] = (
            torch.ones(longest, longest).tril().view(1, 1, longest, longest)
        )
        state |= {
            f"{name}.mlp.c_fc.weight": normal(mlp_dim, h_dim, std=0.2),
            f"{name}.mlp.c_fc.bias": normal(mlp_dim),
            f"{name}.mlp.c_proj.weight": normal(h_dim, mlp_dim, std=0.2),
            f"{name}.mlp.c_proj.bias": normal(h_dim),
        }
    return state | {
        "ln_f.weight": normal(h_dim, std=0.2, mean=1.0),
        "ln_f.bias": normal(h_dim),
        "linear.weight": normal(vocab_size, h_dim, std=0.2),
    }


def save(path, state, prefix="module.", step=99):
    optimizer = {
        "state": {0: {"step": torch.tensor(100.0), "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 6e-6}],
    }
    content = {
        "step": step,
        "model_state_dict": {prefix + name: value for name, value in state.items()},
        "opt_state_dict": optimizer,
    }
    torch.save(content, path)
    return path


def evaluation(model, root, split, vocab, pieces, seq_len, last_n) -> dict:
    """What its eval.py prints, by name: one stream, each window last_n tokens further; of a window
    the last last_n targets count; a window that the stream does not fill is the last one, padded
    with 0, and targets that are 0 do not count."""
    stream = list(tokens_of(queues(root, split, vocab, 1)[0]))
    nats = 0.0
    tokens = 0
    characters = 0
    top1 = 0
    top10 = 0
    for start in itertools.count(0, last_n):
        ids = stream[start : start + seq_len + 1]
        if len(ids) < 2:
            break
        row = torch.tensor(ids + [0] * (seq_len + 1 - len(ids)))
        logits = model(row[None, :-1])[0, -last_n:]
        targets = row[1:][-last_n:]
        kept = targets != 0
        nats += (
            F.cross_entropy(logits, targets, reduction="none").masked_fill(~kept, 0).sum().item()
        )
        best = logits.topk(10).indices
        top1 += int((best[kept, 0] == targets[kept]).sum())
        top10 += int((best[kept] == targets[kept, None]).sum())
        tokens += int(kept.sum())
        characters += len(pieces.decode(targets.tolist()))
        if len(ids) < seq_len + 1:
            break
    return {
        "tokens": tokens,
        "bytes": characters,
        "loss": nats / tokens,
        "ppl": math.exp(nats / tokens),
        "normalised_loss": nats / characters,
        "normalised_ppl": math.exp(nats / characters),
        "top1": top1 / tokens,
        "top10": top10 / tokens,
    }
