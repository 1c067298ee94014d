"""This process among the others of a run: what they exchange outside the engine's own gradients."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from gpt.errors import UserError


def usable_device(asked: str | None) -> str:
    """The device that --device names; by default cuda where there is one, else cpu. Raises UserError."""
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


@dataclass(frozen=True)
class World:
    """This process's place among the others, and its device."""

    rank: int
    size: int
    device: torch.device

    def barrier(self):
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, tensor):
        """Sum of `tensor` over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, value) -> list:
        """Every rank's plain `value`, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def tensor(self, values):
        """Numbers as a float64 tensor on this process's device."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def blackboard(self, timeout_seconds: float):
        """A store of short texts that all ranks can read and write at any time, from any thread; None for one rank.

        A connection of its own to the one that rank 0 (or torchrun) keeps, so that it also answers while this
        process waits for others. Raises a RuntimeError where that one is gone.
        """
        if self.size == 1:
            return None
        store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                           timeout=timedelta(seconds=timeout_seconds))  # fmt: skip
        return torch.distributed.PrefixStore("gpt", store)
