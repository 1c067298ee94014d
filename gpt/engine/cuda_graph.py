"""Experimental: the forward and backward pass of a micro-batch as one CUDA graph, so that the host
launches one thing in place of every kernel.

The graph has places of its own for a micro-batch's tokens, its loss and the sums of gradients. It
asks autograd for the gradients and adds them to the sums by itself: `backward()` would put them
into `.grad`, where the next replay overwrites them, and run DeepSpeed's hooks. After the last
micro-batch DeepSpeed gets the sums in the place where its own backward pass leaves them, and
reduces them outside the graph.

Part of the boundary that gpt/engine/boundary.py is: it calls DeepSpeed's objects, but needs nothing
of its modules.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from gpt.cluster.world import World
from gpt.errors import in_brief

# before the capture, in which no kernel may be compiled and no library set up
WARM_UP_PASSES = 3


class GraphedPasses:
    """Passes over micro-batches of one shape. Making one captures the graph: of `ds`, DeepSpeed's
    engine at ZeRO 1, nothing is changed by that. Raises RuntimeError where it cannot be captured.

    shape: of a micro-batch's tokens, (rows, seq_len + 1).
    """

    def __init__(
        self,
        ds: Any,
        parameters: Iterable[torch.nn.Parameter],
        shape: tuple[int, int],
        device: torch.device,
    ):
        self._ds = ds
        self._parameters = list(parameters)
        self._addresses = self._addresses_of_weights()
        by_accumulator = ds.optimizer.use_grad_accum_attribute
        self._attribute = "grad_accum" if by_accumulator else "grad"
        dtype = ds.optimizer.gradient_accumulation_dtype if by_accumulator else None
        self._sums = [torch.zeros_like(p, dtype=dtype).detach() for p in self._parameters]
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        # a tensor, so that fp16's scale may change without a new graph
        self._loss_scale = torch.ones((), device=device)
        self._graph = torch.cuda.CUDAGraph()
        self._loss = self._capture()

    def begin(self, loss_scale: float) -> None:
        """A step begins: the sums are 0."""
        assert self._addresses == self._addresses_of_weights(), "the graph reads other weights"
        torch._foreach_zero_(self._sums)
        self._loss_scale.fill_(loss_scale)

    def run(self, tokens: torch.Tensor, watch: AbstractContextManager | None) -> torch.Tensor:
        """Both passes over a micro-batch; returns its loss, which the next one overwrites.

        watch: entered around the forward pass, whose operations then are launched one by one.
        """
        self._tokens.copy_(tokens)
        if watch is not None:
            return self._passes(watch)
        self._graph.replay()
        return self._loss

    def hand_over(self, refused: bool) -> None:
        """Have DeepSpeed reduce the gradients of the step's micro-batches, as after its own last
        backward pass. refused: they become NaN, which the optimizer leaves out by itself."""
        if refused:
            torch._foreach_mul_(self._sums, math.nan)
        self._ds.optimizer.setup_buckets()
        for parameter, total in zip(self._parameters, self._sums):
            # DeepSpeed gives what it gets other memory: a tensor of its own over the same numbers
            setattr(parameter, self._attribute, total.detach())
        self._ds.allreduce_gradients()

    def _passes(self, watch: AbstractContextManager | None = None) -> torch.Tensor:
        """What is captured."""
        with watch or nullcontext():
            # without DeepSpeed's hooks on the whole module, which time its passes
            loss = self._ds.module.forward(self._tokens[:, :-1], self._tokens[:, 1:])
        scaled = loss / self._ds.gradient_accumulation_steps() * self._loss_scale
        torch._foreach_add_(self._sums, torch.autograd.grad(scaled, self._parameters))
        return loss.detach()

    def _capture(self) -> torch.Tensor:
        """Returns the loss that every replay writes."""
        pool = torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # left on an error, too, unlike that of torch.cuda.graph
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                self._passes()
            try:
                # other threads, such as NCCL's, may ask for events meanwhile
                with torch.cuda.graph(self._graph, pool, side, "thread_local"):
                    loss = self._passes()
            except RuntimeError:
                _close(pool)
                raise
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _addresses_of_weights(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]


def capture(
    ds: Any,
    parameters: Iterable[torch.nn.Parameter],
    shape: tuple[int, int],
    world: World,
) -> tuple[GraphedPasses | None, str | None]:
    """(GraphedPasses, None), or (None, why not) where a rank could not capture them. All ranks call
    it together, and all get the graph or none."""
    passes = None
    reason = None
    try:
        passes = GraphedPasses(ds, parameters, shape, world.device)
    except RuntimeError as error:
        # the end of a capture that has failed raises an error of its own
        first = error.__context__
        reason = in_brief(first if isinstance(first, RuntimeError) else error)
    for rank, hindrance in enumerate(world.gather(reason)):
        if hindrance is not None:
            return None, (
                f"cuda_graph has no effect: {world.name(rank)} could not capture the passes"
                f" ({hindrance}); they are launched kernel by kernel, as without it"
            )
    return passes, None


def _close(pool: tuple[int, int]) -> None:
    """Have the allocator leave the pool of a failed capture. Where torch has not done so, it gives
    no memory back any more."""
    with suppress(RuntimeError):  # of a pool that it has left
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
