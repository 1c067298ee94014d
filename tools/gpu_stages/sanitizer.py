"""Do the kernels read and write only what is theirs? By NVIDIA's compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECK, SECONDS = "memory accesses", 100
ROWS = 33
WIDTHS = (768, 1025)
VOCABULARY = 2048


def memory(lab):
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if lab.dry or tool is None:
        return lab.not_run(
            CHECK, "it needs a GPU" if lab.dry else "compute-sanitizer is not on this machine"
        )
    if lab.no_triton:
        return lab.not_run(CHECK, f"Triton does not run here: {lab.no_triton}")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__]
    # without the allocator's cache, or a stray access would still hit memory that is allocated
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return lab.not_run(CHECK, f"compute-sanitizer did not end: {error}"[:200])
    print(done.stdout, done.stderr)
    said = [
        line for line in (done.stdout + done.stderr).splitlines() if line.startswith("=========")
    ]
    if done.returncode == 0:
        lab.check(CHECK, saw="compute-sanitizer found no fault")
    elif done.returncode == 9:
        lab.check(CHECK, faults=said[:3])
    else:
        lab.not_run(
            CHECK,
            f"compute-sanitizer could not watch: exit code {done.returncode}; {' '.join(said[:1])}"[
                :200
            ],
        )


def _every_kernel():
    import torch

    from gpt.kernels.gelu import bias_gelu
    from gpt.kernels.layer_norm import add_layer_norm
    from gpt.kernels.linear_cross_entropy import linear_cross_entropy

    def random(*size):
        return torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    targets = torch.arange(ROWS, device="cuda")
    for width in WIDTHS:
        x = random(ROWS, width)
        weight = random(width)
        bias = random(width)
        normed, total = add_layer_norm(x, x, weight, bias, 1e-5, "triton")
        loss = linear_cross_entropy(
            bias_gelu(normed, bias, "triton"), random(VOCABULARY, width), targets, "triton"
        )
        (loss + total.float().sum()).backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    _every_kernel()
