"""What the machine is: its device, that device's peak, and memory in use."""

import ctypes
import os
import platform
import resource
from contextlib import suppress
from importlib import metadata

import torch
import torch.distributed

from gpt import __version__
from gpt.errors import UserError
from gpt.wording import plural

# Dense matrix products with fp32 sums, FLOP/s: in fp16 or bf16, and in fp32 without TF32. NVIDIA's
# data sheets, and for GeForce cards the white papers of GA102 (appendix A) and AD102 (appendix A);
# figures with sparsity are halved there. {part of the name that CUDA gives the device: (16 bits,
# fp32)}; the first that fits counts
PEAKS = {
    "NVIDIA B200": (2250e12, 75e12),
    "H200": (989.4e12, 66.9e12),
    "H100 PCIe": (756e12, 51.2e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "A10G": (70e12, 31.5e12),
    "NVIDIA A10": (125e12, 31.2e12),
    "RTX A6000": (154.8e12, 38.7e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "V100-SXM2": (125e12, 15.7e12),
    "V100-PCIE": (112e12, 14e12),
    "Tesla T4": (65e12, 8.1e12),
}
# in names that hold one of the above as well
NOT_THOSE = ("Laptop", "RTX 3090 Ti", "RTX 4090 D", "H200 NVL", "MIG")
WITHOUT_BF16 = ("V100", "T4")

# of a model in each precision
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def peak_flops(name: str, precision: str) -> float | None:
    """FLOP/s that a device of this name can reach in fp32, fp16 or bf16; None where that is not
    known."""
    if any(part in name for part in NOT_THOSE):
        return None
    if precision == "bf16" and any(part in name for part in WITHOUT_BF16):
        return None
    for part, (narrow, wide) in PEAKS.items():
        if f"{part} " in f"{name} " or f"{part}-" in name:
            return wide if precision == "fp32" else narrow
    return None


def device_name(device: torch.device) -> str:
    """As CUDA calls it; of a CPU the architecture and the threads that torch computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {plural(threads, 'thread')})"


def processor() -> str:
    """The host's, as its system calls it, and the instructions that torch computes with: what
    decides how a CPU rounds."""
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as facts:
        for line in facts:
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has held on a GPU at once, elsewhere the most that was resident of
    this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage counts what the process was before exec as well, such as a larger parent that forked
    # it
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """For processes that compute on a CPU: glibc shall keep what tensors free instead of giving it
    back to the system, whose fresh pages cost a training step of `mini` a sixth of its time.
    Elsewhere than under glibc, or where the environment sets MALLOC_MMAP_THRESHOLD_, nothing
    happens."""
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def share_cores(ranks_here: int) -> None:
    """Share this host's cores among its ranks, unless OMP_NUM_THREADS says otherwise. torchrun sets
    that to 1 where nobody did, which asks for nothing."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if "OMP_NUM_THREADS" in os.environ and not by_torchrun:
        return
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // ranks_here))


def versions() -> dict:
    """{package: version} of what a run's numbers depend on."""
    by_package = {"gpt": __version__, "python": platform.python_version()}
    for name in ("torch", "deepspeed", "triton", "numpy", "sentencepiece"):
        with suppress(metadata.PackageNotFoundError):
            by_package[name] = metadata.version(name)
    if torch.version.cuda:
        by_package["cuda"] = torch.version.cuda
    return by_package


def usable_device(name: str | None) -> str:
    """The device that --device names; by default cuda where there is one, else cpu. Raises
    UserError."""
    if not name:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} is not to be had here: {reason}") from error
    return name
