"""Whole runs of a model of the user's own, in the test's own process: its weights are shared by two
modules, its logits are capped, part of it lies in a file beside it, and a mark tells that it was
run."""

import torch
from plain_run import WEIGHTS, PlainEngine, train

MODEL = """
import torch
from torch import nn

from mixing import mixed

with open({mark!r}, "a") as mark:
    mark.write("run ")


class Model(nn.Module):
    output_layer = "out.logits"
    logit_cap = {cap}

    def __init__(self, shape, inner):
        super().__init__()
        self.out = nn.ModuleDict({{"norm": nn.LayerNorm(shape.h_dim)}})
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.up = nn.Linear(shape.h_dim, inner)
        self.down = nn.Linear(inner, shape.h_dim)
        self.out["logits"] = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)
        self.out["logits"].weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(mixed(x))))
        return self.out["norm"](x)


def build(shape, inner=24):
    return Model(shape, inner)
"""
# the mean of all hidden states so far
MIXING = """
import torch


def mixed(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
"""


class KeepingEngine(PlainEngine):
    """Its checkpoints are such as DeepSpeed writes at stage 0."""

    def save(self, folder, tag, state):
        (folder / tag).mkdir(parents=True, exist_ok=True)
        content = {
            "module": self.module.state_dict(),
            "optimizer": {"state": {}, "param_groups": []},
            "lr_scheduler": None,
            **state,
        }
        torch.save(content, folder / tag / WEIGHTS)

    def load(self, folder, tag):
        state = torch.load(folder / tag / WEIGHTS, weights_only=True)
        self._steps = state["step"]
        self.module.load_state_dict(state["module"])

    def adopt(self, full, scale):
        self._steps = full.step
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(full.weights[name])


def write_model(folder, name="own.py", cap=15.0, **files):
    """Write the model file, the file beside it, and others {name without its ending: text}; returns
    its path. The mark is folder/mark."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(MODEL.format(mark=str(folder / "mark"), cap=cap))
    for other, text in {"mixing": MIXING, **files}.items():
        (folder / f"{other}.py").write_text(text)
    return folder / name


def train_own(run_dir, sample, model_file, allowed=(), **gpt):
    """Train it for two steps, with a checkpoint of each."""
    gpt = {"max_train_steps": 2, "log_ckpt_every": 1, "keep_last": 3, "final_eval": False, **gpt}
    gpt["model_file"] = str(model_file)
    return train(run_dir, sample, allowed, engine=KeepingEngine, gpt=gpt)
