"""Which kernels run here: Triton's or plain torch, and why."""

import importlib.util
import os
import shutil

# Ampere: the oldest generation for which tests/support/kernel_gates.yaml holds figures
MINIMUM_CAPABILITY = (8, 0)


def _why_triton_cannot_run(device, model, dtype):
    """None if the Triton kernels run on this device, else (what is wrong, what to do)."""
    import torch

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
        if device.type != "cuda" or not torch.cuda.is_available():
            return (
                "there is no CUDA device",
                "set TRITON_INTERPRET=1 to try them, slowly, on the CPU",
            )
        if (device.index or 0) >= torch.cuda.device_count():
            return f"there is no device {device}", "start fewer ranks on this host"
        capability = torch.cuda.get_device_capability(device)
        if capability < MINIMUM_CAPABILITY:
            problem = "compute capability {}.{} is below {}.{}".format(
                *capability, *MINIMUM_CAPABILITY
            )
            return problem, "take a newer GPU"

    from gpt.kernels import trial

    return trial.problem(device, model, dtype)


def _onednn_too(device):
    import torch

    from gpt.kernels.linear import by_onednn

    return (
        "; matrix products by oneDNN" if device.type == "cpu" and by_onednn(torch.empty(1)) else ""
    )


def choose(kernels: str, device, model, dtype) -> tuple[str, str]:
    """Which implementation to run, "triton" or "torch", and why, in a few words.

    kernels: "torch", "triton", or "auto" for Triton wherever it runs compiled on a GPU. device: the
    torch.device that this process computes on. model: gpt.config.shape.ModelConfig; dtype: the
    model's torch.dtype. Before it says "triton" every kernel has run on the device at the model's
    widths, and was right (gpt.kernels.trial): seconds, most of them for compilations that the run
    needs anyway. Raises UserError where "triton" is asked for and cannot run.
    """
    from gpt.errors import UserError

    if kernels not in ("auto", "triton", "torch"):
        raise UserError(f'kernels is {kernels!r}: give "auto", "triton" or "torch"')
    if kernels == "torch":
        return "torch", "as asked for"

    from gpt.kernels.triton_shared import interpreted

    if kernels == "auto" and interpreted():
        return "torch", "TRITON_INTERPRET is set, and interpreted kernels are slow"
    obstacle = _why_triton_cannot_run(device, model, dtype)
    if obstacle is None:
        return "triton", (
            "as asked for" if kernels == "triton" else "each was tried on the GPU, and was right"
        )
    problem, remedy = obstacle
    if kernels == "triton":
        raise UserError(
            f'kernels is "triton", but {problem}: {remedy}, or set kernels to "auto" or "torch"'
        )
    return "torch", problem + _onednn_too(device)


def require_compiler(device_type: str):
    """Raises UserError where torch.compile cannot work: it writes C++ for CPUs, and Triton with a
    launcher in C for GPUs."""
    from gpt.errors import UserError

    wanted = os.environ.get("CC", "cc") if device_type == "cuda" else os.environ.get("CXX", "g++")
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            "compile needs the package triton: install torch's build for CUDA, which brings it, or"
            ' set compile to "none"'
        )
    if not any(
        shutil.which(name) for name in (wanted, "gcc" if device_type == "cuda" else "clang++")
    ):
        raise UserError(
            f"compile needs the compiler {wanted}, which is not on the PATH: install it (Debian:"
            ' g++), or set compile to "none"'
        )
