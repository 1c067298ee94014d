"""This process among the others of a run: what they exchange outside the engine's own gradients."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed


def to_device(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A NumPy array as a tensor on a device. On a GPU nothing waits for the copy: it starts from
    pinned memory, and what uses the tensor is queued behind it."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class World:
    """This process's place among the others, and its device.

    hosts: the host's name of every rank, in their order. store: the one that gpt.cluster.roll_call
    met in, None for one rank; rank 0 keeps it for all as long as it holds this object.
    """

    rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...] = ()
    store: torch.distributed.Store | None = None

    def name(self, rank: int) -> str:
        """What a person calls a rank: with its host, where there are several."""
        several_hosts = len(set(self.hosts)) > 1
        return f"rank {rank} on {self.hosts[rank]}" if several_hosts else f"rank {rank}"

    def lost(self, error: Exception) -> str | None:
        """What an error says of the end of a connection to another rank, in brief; None if it is
        another kind of error."""
        text = str(error)
        of_connections = isinstance(error, torch.distributed.DistError) or "/gloo/" in text
        if self.size == 1 or not of_connections:
            return None
        if isinstance(error, torch.distributed.DistBackendError) and "remote process" not in text:
            return None  # NCCL's own troubles, such as two ranks on one GPU
        first_sentence = text.partition("\n")[0].partition(". This is typically")[0]
        return re.sub(r"^\[\S+\] ", "", first_sentence)

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of `tensor` over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain `value`, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def tensor(self, values: Sequence[float] | np.ndarray) -> torch.Tensor:
        """Numbers as a float64 tensor on this process's device."""
        return to_device(np.array(values, np.float64), self.device)

    def blackboard(self, timeout_seconds: float) -> torch.distributed.Store | None:
        """A store of short texts that all ranks can read and write at any time, from any thread;
        None for one rank.

        It also answers while this process waits for others, and raises a RuntimeError where the one
        who keeps it, rank 0 or torchrun, has not answered for so long.
        """
        if self.size == 1:
            return None
        assert self.store is not None
        self.store.set_timeout(timedelta(seconds=timeout_seconds))
        return torch.distributed.PrefixStore("blackboard", self.store)
