"""A run by torch alone: one process, whole batches, no DeepSpeed, no engine. What the engine's runs
are compared with."""

import math

import torch

from gpt.config.resolve import load
from gpt.data.datasets import Dataset
from gpt.data.streams import Streams
from gpt.model import GPT


def plain_torch(config_file, data):
    """(losses, norms of the whole gradient, norms by module as the engine tells them, final
    weights) of a run in fp32."""
    config = load(config_file)
    streams = Streams(
        Dataset(data).split("train"), config.batch.train_batch_size, config.model.seq_len
    )
    model = GPT(config.model, config.options.seed)
    if config.deepspeed["optimizer"]["type"] == "SGD":
        optimizer = torch.optim.SGD(model.parameters())
    else:
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), eps=1e-8)
    losses = []
    norms = []
    by_module = []
    clip = config.deepspeed["gradient_clipping"]
    for step in range(config.options.max_train_steps):
        batch = torch.from_numpy(streams.batch(step))
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norms.append(math.sqrt(sum(g.double().square().sum().item() for g in gradients.values())))
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            s, d = step + 1, config.schedule
            cosine = d.min_lr + 0.5 * (
                1 + math.cos(math.pi * min(s, d.decay_steps) / d.decay_steps)
            ) * (d.max_lr - d.min_lr)
            group["lr"] = min(s, d.warmup_steps) / d.warmup_steps * cosine
        optimizer.step()
        updates = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        by_module.append(
            {
                kind: _by_module(values)
                for kind, values in (
                    ("weight", before),
                    ("gradient", gradients),
                    ("update", updates),
                )
            }
        )
        losses.append(loss.item())
    return losses, norms, by_module, {name: p.detach() for name, p in model.named_parameters()}


def _by_module(tensors):
    squares = {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        squares[module] = squares.get(module, 0.0) + tensor.double().square().sum().item()
    return {module: math.sqrt(value) for module, value in squares.items()}
