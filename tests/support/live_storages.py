"""Bytes of all tensors that are alive, and the most there were: also of memory that nobody has
touched yet."""

import weakref

import torch
from torch.utils._pytree import tree_flatten

from gpt.kernels.compiler import DispatchMode


class LiveStorages(DispatchMode):
    """Counts the storages of all tensors that are made inside, until the last reference to them is
    gone.

    bytes: alive now. peak: the most at once since `restart()`. What an operation allocates and
    frees within itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._alive = {}  # {id of a storage: a weak reference to it}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {
            id(t.untyped_storage())
            for t in tree_flatten((args, kwargs))[0]
            if isinstance(t, torch.Tensor)
        }
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if id(storage) not in given | self._alive.keys():
                    self._add(id(storage), storage, storage.nbytes())
        return result

    def _add(self, key, storage, size):
        def gone(reference):
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def restart(self):
        self.peak = self.bytes
