"""What this machine is, and what it attains: the measure of everything else in the report."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from gpt.compute.hardware import DTYPES, device_name, versions
from gpt.kernels import attention
from gpt.kernels.choice import choose
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm

SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def facts(lab):
    for name, value in _machine(lab):
        lab.row("facts", fact=name, value=str(value))
    side, elements = (256, 1 << 16) if lab.dry else (8192, 1 << 28)
    for precision in ("bf16", "fp16"):
        a, b = (torch.randn(side, side, device=lab.device).to(DTYPES[precision]) for _ in range(2))
        product = torch.empty_like(a)
        ms = lab.milliseconds(lambda: torch.mm(a, b, out=product), 10)
        lab.row(
            "rates",
            what=f"matmul {precision}",
            shape=f"{side} cubed",
            flops_per_second=2e3 * side**3 / ms,
        )
    source = torch.randn(elements, device=lab.device)
    copy = torch.empty_like(source)
    ms = lab.milliseconds(lambda: copy.copy_(source), 10)
    lab.row(
        "rates",
        what="copy",
        shape=f"{source.nbytes >> 20} MiB",
        bytes_per_second=2e3 * source.nbytes / ms,
    )
    _host_costs(lab)
    _attention_backends(lab)
    _choice(lab)


def _machine(lab):
    yield "device", device_name(lab.device)
    yield from versions().items()
    yield "Triton's first launch", f"fails: {lab.no_triton}" if lab.no_triton else "works"
    yield "platform", platform.platform()
    if not lab.dry:
        properties = torch.cuda.get_device_properties(0)
        yield "GPUs", torch.cuda.device_count()
        yield "compute capability", "{}.{}".format(*torch.cuda.get_device_capability())
        yield "multiprocessors", properties.multi_processor_count
        yield "memory", f"{properties.total_memory / 2**30:.1f} GiB"
        yield "cuDNN", torch.backends.cudnn.version()
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
        yield f"nvidia-smi ({SMI})", done.stdout.strip() or done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        yield "nvidia-smi", f"not to be had: {error}"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        yield (
            "processor",
            next(
                (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                "unknown",
            ),
        )
    yield (
        "cores",
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    yield "interpreter", sys.executable


def _host_costs(lab):
    x = torch.zeros(64, 768, device=lab.device, dtype=torch.bfloat16).requires_grad_()
    row = torch.ones(768, device=lab.device, dtype=torch.bfloat16)
    matrix = torch.ones(8, 768, device=lab.device, dtype=torch.bfloat16)
    free = x.detach().clone()
    for what, work in (
        ("add_", lambda: free.add_(1)),
        ("linear", lambda: F.linear(x, matrix)),
        ("add_layer_norm", lambda: add_layer_norm(x, x, row, row, 1e-5, lab.kernels)),
        ("bias_gelu", lambda: bias_gelu(x, row, lab.kernels)),
    ):
        lab.row("host", what=what, microseconds=lab.host_microseconds(work))


def _attention_backends(lab):
    lengths = (16, 5) if lab.dry else (512, 500, 37, 1)
    for precision in ("bf16", "fp16", "fp32"):
        taken = {
            length: attention.backend((32, 12, length, 64), DTYPES[precision], lab.device)
            for length in lengths
        }
        lab.row(
            "facts",
            fact=f"attention in {precision} by T",
            value=", ".join(f"{t}: {name}" for t, name in taken.items()),
        )
        if precision != "fp32":
            fused = taken[lengths[0]] in ("flash", "cudnn", "efficient")
            lab.check(
                "attention is fused",
                precision,
                [] if fused else [f"torch takes {taken[lengths[0]]}"],
                taken[lengths[0]],
            )


def _choice(lab):
    """What a run would take by itself."""
    found, why = choose("auto", lab.device, lab.shape("small"), torch.bfloat16)
    right = found == ("torch" if lab.dry else "triton")
    lab.check(
        "kernels that auto takes",
        faults=[] if right else [f"it takes {found}: {why}"],
        saw=f"{found}: {why}",
    )
