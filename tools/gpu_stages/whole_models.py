"""Are whole models right? Their gradients against fp32's and plain torch's."""

import torch

from gpt.compute.hardware import DTYPES
from gpt.config.shape import ModelConfig
from gpt.model import GPT
from tools.gpu_stages import HALF
from tools.gpu_stages.lab import TINY

LOSS_SCALE = 2.0**14  # of fp16 models


def models(lab):
    """Gradients of four layers against fp32; of shipped shapes, Triton's against plain torch's."""
    torch.manual_seed(0)
    four = TINY if lab.dry else ModelConfig(4, 768, 3072, 12, 64, 16384, 512)
    exact = _gradient(lab, four, "fp32", "torch")
    for precision in HALF:
        loss, found = _gradient(lab, four, precision, lab.kernels)
        plain = _apart(_gradient(lab, four, precision, "torch")[1], exact[1])
        apart = _apart(found, exact[1])
        limit = {"bf16": 0.06, "fp16": 0.008}[precision]
        faults = (
            []
            if apart < min(limit, 1.5 * plain + 1e-4)
            else ["the gradient is further from fp32's than it may be"]
        )
        faults += (
            []
            if abs(loss - exact[0]) < {"bf16": 0.02, "fp16": 0.003}[precision]
            else [f"the loss is {loss}, in fp32 {exact[0]}"]
        )
        lab.check(
            "model of four layers",
            precision,
            faults,
            f"gradient {apart:.2%} from fp32's, by plain torch {plain:.2%}",
        )
    for preset in ("small", "medium"):
        for precision in HALF:
            if lab.no_triton and not lab.dry:
                lab.not_run(
                    f"{preset} at its real shape",
                    f"Triton does not run here: {lab.no_triton}",
                    precision,
                )
            else:
                _as_plain_torch(lab, preset, precision)


def _as_plain_torch(lab, preset, precision):
    config = lab.shape(preset)
    (loss, found), (plain_loss, plain) = (
        _gradient(lab, config, precision, way) for way in (lab.kernels, "torch")
    )
    apart = _apart(found, plain)
    limit = {"bf16": 0.08, "fp16": 0.012}[precision]
    faults = [] if bool(torch.isfinite(found).all()) else ["the gradient is not finite"]
    faults += [] if apart < limit else [f"the gradient is {apart:.2%} from plain torch's"]
    faults += (
        []
        if abs(loss - plain_loss) < 0.01
        else [f"the loss is {loss}, by plain torch {plain_loss}"]
    )
    lab.check(
        f"{preset} at its real shape", precision, faults, f"gradient {apart:.2%} from plain torch's"
    )


def _gradient(lab, config, precision, kernels):
    """(loss, the whole gradient in fp32) of one batch, the same for every call of one shape."""
    tokens = lab.tokens(4, config.seq_len + 1, vocab_size=config.vocab_size)
    model = GPT(config, 0, kernels=kernels).to(lab.device, DTYPES[precision])
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    loss = model(tokens[:, :-1], tokens[:, 1:])
    (loss * scale).backward()
    return (
        loss.item(),
        torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()]) / scale,
    )


def _apart(found, exact):
    return ((found - exact).norm() / exact.norm()).item()
