"""Operations of the hot loop, each written for speed and small memory.

Each fused operation has a Triton version for GPUs and a plain torch version beside it; `choose` says which one to use.
"""

import os
import shutil

MINIMUM_CAPABILITY = (8, 0)  # Ampere: the oldest generation for which tests/kernel_gates.yaml holds figures


def _why_triton_cannot_run(device_type, h_dim):
    """None if the Triton kernels can run on this device, else (what is wrong, what to do)."""
    import torch

    from gpt.kernels.launch import HAVE_TRITON, interpreted
    from gpt.kernels.layer_norm import MAXIMUM_WIDTH

    if not HAVE_TRITON:
        return "the package triton is not installed", "run `pip install triton`"
    if h_dim > MAXIMUM_WIDTH:
        return f"h_dim {h_dim:,} is wider than the {MAXIMUM_WIDTH:,} that its LayerNorm takes", "take a narrower model"
    if interpreted():
        return None
    if device_type != "cuda" or not torch.cuda.is_available():
        return "there is no CUDA device", "set TRITON_INTERPRET=1 to try them, slowly, on the CPU"
    capability = torch.cuda.get_device_capability()
    if capability < MINIMUM_CAPABILITY:
        return "compute capability {}.{} is below {}.{}".format(*capability, *MINIMUM_CAPABILITY), "take a newer GPU"
    return None


def _onednn_too(device_type):
    import torch

    from gpt.kernels.linear import by_onednn

    return "; matrix products by oneDNN" if device_type == "cpu" and by_onednn(torch.empty(1)) else ""


def choose(kernels: str, device_type: str, h_dim: int) -> tuple[str, str]:
    """Which implementation to run, "triton" or "torch", and why, in a few words.

    kernels: "torch", "triton", or "auto" for Triton wherever it runs compiled on a GPU. device_type: "cuda", "cpu", …
    h_dim: the model's. Raises UserError where "triton" is asked for and cannot run.
    """
    from gpt.errors import UserError

    if kernels not in ("auto", "triton", "torch"):
        raise UserError(f'kernels is {kernels!r}: give "auto", "triton" or "torch"')
    if kernels == "torch":
        return "torch", "as asked for"
    obstacle = _why_triton_cannot_run(device_type, h_dim)
    if kernels == "triton":
        if obstacle is None:
            return "triton", "as asked for"
        problem, remedy = obstacle
        raise UserError(f'kernels is "triton", but {problem}: {remedy}, or set kernels to "auto" or "torch"')
    if obstacle is not None:
        return "torch", obstacle[0] + _onednn_too(device_type)

    from gpt.kernels.launch import interpreted

    if interpreted():
        return "torch", "TRITON_INTERPRET is set, and interpreted kernels are slow"
    return "triton", "triton is installed and the GPU is recent enough"


def require_compiler(device_type: str):
    """Raises UserError where torch.compile cannot work: it writes C++ for CPUs, and Triton with a launcher in C for GPUs."""
    from gpt.errors import UserError
    from gpt.kernels.launch import HAVE_TRITON

    wanted = os.environ.get("CC", "cc") if device_type == "cuda" else os.environ.get("CXX", "g++")
    if device_type == "cuda" and not HAVE_TRITON:
        raise UserError('compile needs the package triton: run `pip install triton`, or set compile to "none"')
    if not any(shutil.which(name) for name in (wanted, "gcc" if device_type == "cuda" else "clang++")):
        raise UserError(f"compile needs the compiler {wanted}, which is not on the PATH: install it (Debian: g++), or set "
                        'compile to "none"')
