"""CUDA graphs on a CPU: what torch's dispatcher sees during a capture is kept, and a replay does it
again, on the same memory.

As on a GPU, a capture computes nothing: what it wrote is as it was, and what it made is NaN until a
replay. A number that the captured code took from Python stays what it was. What waits for the
device, or has a shape that depends on data, ends the capture with CUDA's error. It shows no race
between streams, and no memory that is given to two tensors.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from fake_cuda import Stream
from torch.utils._pytree import tree_leaves, tree_map_only

from gpt.kernels.compiler import DispatchMode

# operations that wait for the device, or whose results have a shape that depends on data
NOT_CAPTURED = frozenset(
    "_local_scalar_dense is_nonzero nonzero masked_select unique_dim _unique2 repeat_interleave"
    " bincount equal".split()
)
REFUSAL = "CUDA error: operation not permitted when stream is capturing\nand more"


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    replays = 0  # of all since `fake_graphs` was entered

    def __init__(self):
        self.tape = []

    @torch.no_grad()
    def replay(self):
        Graph.replays += 1
        for function, args, kwargs, results in self.tape:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(DispatchMode):
    """In the place of torch.cuda.graph."""

    def __init__(self, graph, pool, stream, capture_error_mode):
        super().__init__()
        assert isinstance(stream, Stream) and capture_error_mode == "thread_local"
        self.graph = graph
        self.fresh = {}  # {storage: a tensor in it} of what the capture made
        self.before = {}  # {storage: (it, its content)} of what it wrote upon

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._schema.name.split("::")[1] in NOT_CAPTURED:
            raise RuntimeError(REFUSAL)
        for place, value in zip(function._schema.arguments, args):
            if place.alias_info is not None and place.alias_info.is_write:
                self._keep(tree_leaves(value))
        known = {key(value) for value in tree_leaves((args, kwargs)) if is_tensor(value)}
        results = function(*args, **kwargs)
        for result in filter(is_tensor, tree_leaves(results)):
            if key(result) not in known:
                self.fresh[key(result)] = result
        # the memory that they lie in now, wherever the tensors themselves lie at a replay
        self.graph.tape.append((function, *map(addresses, (args, kwargs, results))))
        return results

    def _keep(self, tensors):
        for tensor in filter(is_tensor, tensors):
            if key(tensor) not in self.fresh and key(tensor) not in self.before:
                storage = tensor.untyped_storage()
                self.before[key(tensor)] = storage, storage.clone()

    def __exit__(self, kind, *error):
        super().__exit__(kind, *error)
        for storage, content in self.before.values():
            storage.copy_(content)
        for tensor in self.fresh.values():
            if tensor.is_floating_point():
                size = tensor.untyped_storage().nbytes() // tensor.itemsize
                torch.as_strided(tensor.detach(), (size,), (1,), 0).fill_(float("nan"))
        if kind is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error")


def addresses(values):
    return tree_map_only(torch.Tensor, torch.Tensor.detach, values)


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def key(tensor):
    return tensor.untyped_storage()._cdata


@contextmanager
def fake_graphs():
    """Inside, torch.cuda has graphs, on what fake_cuda.fake_cuda gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "replays", 0)
        for name, value in {
            "CUDAGraph": Graph,
            "graph": Capture,
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda: Stream(),
            "current_device": lambda: 0,
            "graph_pool_handle": lambda: (0, 1),
        }.items():
            patch.setattr(torch.cuda, name, value)
        yield Graph
