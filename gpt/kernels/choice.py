"""Which kernels run here: Triton's or plain torch, and why. Imports torch only where it looks."""

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

from gpt.errors import UserError
from gpt.kernels.sizes import Widths

if TYPE_CHECKING:
    import torch

# Ampere: the oldest generation for which tests/support/kernel_gates.yaml holds figures
MINIMUM_CAPABILITY = (8, 0)


def _why_triton_cannot_run(
    device: "torch.device", model: Widths, dtype: "torch.dtype"
) -> tuple[str, str] | None:
    """None if the Triton kernels run on this device, else (what is wrong, what to do)."""
    from gpt.kernels.layer_norm import MAXIMUM_WIDTH
    from gpt.kernels.triton_shared import OBSTACLE, interpreted

    if OBSTACLE is not None:
        return OBSTACLE
    if model.h_dim > MAXIMUM_WIDTH:
        problem = (
            f"h_dim {model.h_dim:,} is wider than the {MAXIMUM_WIDTH:,} that its LayerNorm takes"
        )
        return problem, "take a narrower model"
    if not interpreted():
        obstacle = _why_the_device_is_not_usable(device)
        if obstacle is not None:
            return obstacle

    from gpt.kernels import trial

    return trial.problem(device, model, dtype)


def _why_the_device_is_not_usable(device: "torch.device") -> tuple[str, str] | None:
    import torch

    if device.type != "cuda" or not torch.cuda.is_available():
        remedy = "set TRITON_INTERPRET=1 to try them, slowly, on the CPU"
        return "there is no CUDA device", remedy
    if (device.index or 0) >= torch.cuda.device_count():
        return f"there is no device {device}", "start fewer ranks on this host"
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        present = "{}.{}".format(*capability)
        least = "{}.{}".format(*MINIMUM_CAPABILITY)
        return f"compute capability {present} is below {least}", "take a newer GPU"
    return None


def _multiplies_by_onednn(device: "torch.device") -> bool:
    import torch

    from gpt.kernels.linear import by_onednn

    return device.type == "cpu" and by_onednn(torch.empty(1))


def choose(
    kernels: str, device: "torch.device", model: Widths, dtype: "torch.dtype"
) -> tuple[str, str]:
    """Which implementation to run, "triton" or "torch", and why, in a few words.

    kernels: "torch", "triton", or "auto" for Triton wherever it runs compiled on a GPU. device: the
    one that this process computes on. dtype: the model's. Before it says "triton" every kernel has
    run on the device at the model's widths, and was right (gpt.kernels.trial): seconds, most of
    them for compilations that the run needs anyway. Raises UserError where "triton" is asked for
    and cannot run.
    """
    if kernels not in ("auto", "triton", "torch"):
        raise UserError(f"kernels is {kernels!r}", mend='give "auto", "triton" or "torch"')
    if kernels == "torch":
        return "torch", "as asked for"

    from gpt.kernels.triton_shared import interpreted

    if kernels == "auto" and interpreted():
        return "torch", "TRITON_INTERPRET is set, and interpreted kernels are slow"
    obstacle = _why_triton_cannot_run(device, model, dtype)
    if obstacle is None and kernels == "triton":
        return "triton", "as asked for"
    if obstacle is None:
        return "triton", "each was tried on the GPU, and was right"
    problem, remedy = obstacle
    if kernels == "triton":
        raise UserError(
            f'kernels is "triton", but {problem}',
            mend=f'{remedy}, or set kernels to "auto" or "torch"',
        )
    if _multiplies_by_onednn(device):
        problem += "; matrix products by oneDNN"
    return "torch", problem


def require_compiler(device_type: str) -> None:
    """Raises UserError where torch.compile cannot work: it writes C++ for CPUs, and Triton with a
    launcher in C for GPUs."""
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "compile needs the package triton",
                mend=('install torch\'s build for CUDA, which brings it, or set compile to "none"'),
            )
        compilers = [os.environ.get("CC", "cc"), "gcc"]
    else:
        compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise UserError(
            f"compile needs the compiler {compilers[0]}, which is not on the PATH",
            mend='install it (Debian: g++), or set compile to "none"',
        )
