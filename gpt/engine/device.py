"""This rank's GPU, as the trainer wants it.

Part of the boundary that gpt/engine/boundary.py is: it changes DeepSpeed's objects, but needs
nothing of its modules.
"""

from typing import Any

import torch


def prepare_gpu(accelerator: Any, local_rank: int) -> None:
    """Take this rank's GPU, and have it sum and tell its memory as the trainer wants it.

    accelerator: DeepSpeed's.
    """
    accelerator.set_device(local_rank)
    # DeepSpeed asks NVML, by numbers that it reads from CUDA_VISIBLE_DEVICES, where UUIDs may
    # stand.
    accelerator.available_memory = lambda index=None: torch.cuda.mem_get_info(index)[0]
    # Weight gradients are sums over thousands of rows, which cuBLAS cuts up: parts of a sum stay
    # fp32.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
