"""Does it learn? Short trainings without DeepSpeed, in three precisions, on learnable text."""

import torch

from gpt.compute.hardware import DTYPES
from gpt.config.shape import ModelConfig
from gpt.model import GPT

FOLLOWERS = 4  # every word of the text is followed by one of so many others, all as likely
LOSS_SCALE = 2.0**12  # in fp16
FURTHEST = {
    "fp32": 0.02,
    "bf16": 0.1,
    "fp16": 0.05,
}  # nats that a curve may be from that of plain torch in fp32


def curves(lab):
    config = (
        ModelConfig(1, 64, 128, 2, 32, 32, 16)
        if lab.dry
        else ModelConfig(4, 512, 2048, 8, 64, 512, 256)
    )
    steps = 25 if lab.dry else 80
    batches = _text(config, 16 if lab.dry else 64, steps).to(lab.device)
    exact = _curve(lab, config, batches, "fp32", "torch")
    for precision in ("bf16", "fp16", "fp32"):
        curve = _curve(lab, config, batches, precision, lab.kernels)
        apart = max(abs(ours - theirs) for ours, theirs in zip(curve, exact))
        faults = (
            []
            if curve[-1] < curve[0] - 1
            else [f"the loss went from {curve[0]:.3f} to {curve[-1]:.3f}"]
        )
        faults += (
            []
            if apart < FURTHEST[precision]
            else [f"the curve is {apart:.3f} nats from that of plain torch in fp32"]
        )
        lab.check(
            "a training that learns",
            precision,
            faults,
            f"{curve[0]:.3f} to {curve[-1]:.3f} nats in {steps} steps, {apart:.4f} off fp32's",
        )
        lab.row(
            "curves",
            precision=precision,
            losses=[round(loss, 4) for loss in curve[:: max(1, steps // 8)]],
            last=curve[-1],
        )


def _text(config, rows, steps):
    """(steps, rows, seq_len + 1) words of a random walk, whose loss can sink to ln FOLLOWERS."""
    generator = torch.Generator().manual_seed(1)
    followers = torch.randint(
        config.vocab_size, (config.vocab_size, FOLLOWERS), generator=generator
    )
    words = [torch.randint(config.vocab_size, (steps * rows,), generator=generator)]
    for _ in range(config.seq_len):
        words.append(
            followers[words[-1], torch.randint(FOLLOWERS, (steps * rows,), generator=generator)]
        )
    return torch.stack(words, 1).view(steps, rows, -1)


def _curve(lab, config, batches, precision, kernels):
    """Losses of Adam on fp32 copies of the weights, which the model has in its precision."""
    model = GPT(config, 0, kernels=kernels).to(lab.device, DTYPES[precision])
    masters = [
        parameter.detach().float().clone().requires_grad_() for parameter in model.parameters()
    ]
    adam = torch.optim.AdamW(
        masters, lr=3e-3 if lab.dry else 1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    losses = []
    for batch in batches:
        loss = model(batch[:, :-1], batch[:, 1:])
        (loss * scale).backward()
        for master, parameter in zip(masters, model.parameters()):
            master.grad = parameter.grad.float() / scale
            parameter.grad = None
        adam.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters()):
                parameter.copy_(master)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()
