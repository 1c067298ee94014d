"""Model files for tests: a small transformer, and changes that leave it right."""

# a small transformer, of which each test changes a line
MODEL = """
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
# top

class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape.n_heads
        self.norm = nn.LayerNorm(shape.h_dim)
        self.qkv = nn.Linear(shape.h_dim, 3 * shape.h_dim)
        self.out = nn.Linear(shape.h_dim, shape.h_dim)
        # block

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(b, t, c)
        return x + self.out(y)

class Model(nn.Module):
    output_layer = "head"

    def __init__(self, shape, base=1.0):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.h_dim)
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        # model

    def forward(self, tokens):
        # first
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        # last
        return x

def build(shape, base=1.0):
    model = Model(shape, base)
    # built
    return model
"""


def changed(*changes):
    """MODEL with each (old, new) put in, where `new` may be of several lines."""
    text = MODEL
    for old, new in changes:
        assert text.count(old) == 1, old
        line = next(line for line in text.split("\n") if old in line)
        indent = line[: len(line) - len(line.lstrip())]
        text = text.replace(old, new.replace("\n", f"\n{indent}"))
    return text


LAST = "# last"
GOOD = {
    "as it is": [],
    "an option": [
        ("# model", "self.base = base"),
        ("self.embed(tokens)", "self.embed(tokens) * self.base"),
    ],
    "tied": [
        ("# model", "self.head.weight = self.embed.weight"),
        ("# built", "nn.init.normal_(model.embed.weight, std=0.02)"),
    ],
    "logits": [('output_layer = "head"', "pass"), (LAST, "x = self.head(x)")],
    "a cap of logits": [('output_layer = "head"', 'output_layer = "head"\nlogit_cap = 15.0')],
    "one block thrice": [
        ("# model", "del self.blocks[1:]"),
        ("in self.blocks:", "in [self.blocks[0]] * 3:"),
    ],
    "no list of blocks": [
        (
            "nn.ModuleList(Block(shape) for _ in range(shape.n_layers))",
            "nn.Sequential(Block(shape))",
        )
    ],
    "a buffer": [
        ("# model", "self.register_buffer('scale', torch.full((1,), 2.0), persistent=False)"),
        (LAST, "x = x * self.scale.to(x.dtype)"),
    ],
    "zero at the start": [("# block", "nn.init.zeros_(self.out.weight)")],
    "kinks": [("x = self.norm(x)", "x = self.norm(x).relu()")],
    "a recurrence": [("x = self.norm(x)", "x = self.norm(x.cumsum(1))")],
    "a parameter that is named as unused": [
        ("# model", "self.spare = nn.Parameter(torch.ones(2))\nself.without_gradient = ('spare',)")
    ],
    # whose rounding moves earlier positions by little
    "a convolution by Fourier transforms": [
        (
            "x = self.norm(x)",
            "time = x.shape[1]\n"
            "rates = torch.fft.rfft(0.8 ** torch.arange(time), 2 * time)[:, None]\n"
            "waves = torch.fft.rfft(x.float(), 2 * time, 1) * rates\n"
            "x = self.norm(torch.fft.irfft(waves, 2 * time, 1)[:, :time].to(x.dtype))",
        )
    ],
}
