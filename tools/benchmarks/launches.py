"""Every kernel that a GPU is given for a micro-batch of the GPT, counted without a GPU.

A forward and a backward pass run on torch's meta device, which has shapes and no numbers. torch's
operations are seen by its dispatcher; those of gpt/kernels run their own code, with a recorder in
the place of each Triton kernel. So whatever a change adds, be it a cast, a copy or a sum, is in the
list, as tests/tools/test_launches.py has it.

Bytes: each tensor that a kernel reads or writes counts once, an overwritten one twice. What a
kernel reads again at once comes from a cache and is not counted: the second look of cross-entropy
at a row. Nor is what an operation of torch's keeps to itself: fp32 sums of attention's backward
pass, and of products that cuBLAS splits along their inner side.
"""

if __name__ == "__main__":
    raise SystemExit("error: this is a part of `python tools/bench.py --paper`: run that")

import contextlib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gpt.kernels
from gpt.config.shape import ModelConfig
from gpt.errors import UserError
from gpt.kernels import linear, triton_shared
from gpt.model import GPT

MULTIPROCESSORS = 132  # of an H100: kernels that walk over rows write a partial sum per program

# Kinds of launches, by what bounds them.
PRODUCT = "product"
INPUT_GRADIENT = "product, input's gradient"
WEIGHT_GRADIENT = "product, weight's gradient"
ATTENTION = "attention"
ATTENTION_BACKWARD = "attention, backward"
MEMORY = "memory"

# Operations of torch's that are more than one kernel on a GPU.
KERNELS = {
    "_scaled_dot_product_flash_attention_backward": 3,  # sums of rows, gradients, dq to 16 bits
    "embedding_dense_backward": 13,  # a radix sort of the ids, bounds of their runs, sums
}
WITHOUT_KERNEL = frozenset(
    "_unsafe_view empty empty_like empty_strided is_same_size new_empty new_empty_strided".split()
)
# Attention's backward pass computes the scores a second time: five products, forward two.
BACKWARD_PRODUCTS = 2.5

# What a Triton kernel writes over its input, and where it reads rows of a table: as many as are in
# another argument.
OVERWRITTEN = {"_cross_entropy_kernel": "logits"}
GATHERED = {"_embed_forward_kernel": ("weight", "result")}


class Launch(NamedTuple):
    """One operation that a GPU is given."""

    name: str
    kind: str
    kernels: int
    bytes: int
    flops: float = 0.0
    size: tuple[int, ...] = ()  # of a product: rows, columns, inner side


class Pass(NamedTuple):
    """What a micro-batch launches, in order."""

    forward: list[Launch]
    backward: list[Launch]
    additions: list[Launch]  # to gradients of earlier micro-batches


def kernels(launches: list[Launch]) -> int:
    return sum(launch.kernels for launch in launches)


def moved(launches: list[Launch]) -> int:
    """Bytes read and written."""
    return sum(launch.bytes for launch in launches)


def micro_batch(
    shape: ModelConfig,
    rows: int,
    dtype: torch.dtype = torch.bfloat16,
    multiprocessors: int = MULTIPROCESSORS,
) -> Pass:
    """What `rows` sequences of a model's full length launch, forward and backward, where gradients
    of an earlier micro-batch lie in `.grad`. Raises UserError where triton is missing."""
    if triton_shared.OBSTACLE is not None:
        problem, remedy = triton_shared.OBSTACLE
        raise UserError(f"the launches cannot be counted: {problem}", mend=remedy)
    recorder = _Recorder()
    with torch.device("meta"):
        model = GPT(shape, None, kernels="triton").to(dtype)
        tokens = torch.zeros(rows, shape.seq_len + 1, dtype=torch.int64)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
    recorder.gradients = {_storage(parameter.grad) for parameter in model.parameters()}
    with _as_on_a_gpu(recorder, multiprocessors), recorder, _FlashAttention():
        loss = model(tokens[:, :-1], tokens[:, 1:])
        recorder.launches = backward = []
        loss.backward()
    return Pass(recorder.forward, backward, recorder.additions)


@contextlib.contextmanager
def _as_on_a_gpu(recorder: "_Recorder", multiprocessors: int) -> Iterator[None]:
    """Inside, Triton's kernels tell the recorder of their launches, and the meta device passes for
    a GPU."""
    with contextlib.ExitStack() as stack:
        for module, name, kernel in _triton_kernels():
            _replace(stack, module, name, _KernelRecorder(recorder, name, kernel))
        _replace(stack, triton_shared, "_multiprocessors", lambda device: multiprocessors)
        _replace(stack, linear, "_WITH_FP32_RESULTS", {"meta"})
        yield


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _triton_kernels() -> Iterator[tuple[Any, str, Any]]:
    """(module, name, kernel) of all in gpt/kernels."""
    for info in pkgutil.iter_modules(gpt.kernels.__path__):
        module = importlib.import_module(f"gpt.kernels.{info.name}")
        for name, value in list(vars(module).items()):
            # Triton's are told by what they are made of: a function of Python's, and a grid
            if hasattr(value, "__getitem__") and inspect.isfunction(getattr(value, "fn", None)):
                yield module, name, value


class _KernelRecorder:
    """Stands in for a Triton kernel: `recorder[grid](...)` is a launch."""

    def __init__(self, recorder: "_Recorder", name: str, kernel: Any):
        self._recorder = recorder
        self._name = name
        self._signature = inspect.signature(kernel.fn)

    def __getitem__(self, grid: Any) -> "_KernelRecorder":
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        # num_warps and its like are no parameters of the kernel's
        named = {name: value for name, value in named.items() if name in self._signature.parameters}
        values = self._signature.bind(*args, **named).arguments
        sizes = {name: _bytes(value) for name, value in values.items()}
        total = sum(sizes.values())
        if self._name in OVERWRITTEN:
            total += sizes[OVERWRITTEN[self._name]]
        if self._name in GATHERED:
            table, like = GATHERED[self._name]
            total += sizes[like] - sizes[table]
        name = self._name.strip("_").removesuffix("_kernel")
        self._recorder.launches.append(Launch(name, MEMORY, 1, total))


class _Recorder(TorchDispatchMode):
    """Keeps what is launched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[Launch] = []
        self.additions: list[Launch] = []
        self.launches = self.forward
        self.gradients: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "gpt":
            body = OPDEFS[function._schema.name]._init_fn
            with self:
                return body(*args, **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, (Tensor, tuple, list)) and _has_kernel(function):
            launch = _torch_launch(function, args, kwargs, result)
            is_addition = isinstance(args[0], Tensor) and _storage(args[0]) in self.gradients
            (self.additions if is_addition else self.launches).append(launch)
        return result


class _FlashAttention(TorchFunctionMode):
    """Inside, attention is one operation, as on a GPU; the meta device alone would take it
    apart."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        assert kwargs == {"is_causal": True}, "another attention than gpt.kernels.attention's"
        return torch.ops.aten._scaled_dot_product_flash_attention(*args, 0.0, True)[0]


def _has_kernel(function: Any) -> bool:
    """Whether an operation of torch's does more than look at a tensor in another way, or make
    one."""
    schema = function._schema
    if schema.name.split("::")[1] in WITHOUT_KERNEL:
        return False
    aliases = [part.alias_info for part in schema.returns if part.alias_info]
    return all(alias.is_write for alias in aliases)


def _torch_launch(function: Any, args: Any, kwargs: Any, result: Any) -> Launch:
    name = function._schema.name.split("::")[1]
    overwritten = name in ("copy_", "zero_", "fill_")  # without a look at what was there
    inputs = [*args[overwritten:], *(kwargs[key] for key in kwargs if key != "out")]
    total = sum(map(_bytes, tree_leaves((inputs, result))))
    if name in ("embedding", "index_select"):
        total += _bytes(result) - _bytes(args[0])  # of the table as many rows as are asked for
    kernels = KERNELS.get(name, 1)
    if name == "sort":  # places, a histogram and its sums, a pass over every byte of a key
        kernels = 3 + args[0].element_size()
    if name in ("mm", "addmm"):
        a, b = args[-2:] if name == "addmm" else args[:2]
        size = (a.shape[0], b.shape[1], a.shape[1])
        return Launch(name, _kind_of_product(a, b), kernels, total, 2 * math.prod(size), size)
    if name.startswith("_scaled_dot_product"):
        is_backward = name.endswith("_backward")
        q, k, v = args[1:4] if is_backward else args[:3]
        # causal: half of the scores
        flops = math.prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])
        if is_backward:
            return Launch(name, ATTENTION_BACKWARD, kernels, total, BACKWARD_PRODUCTS * flops)
        return Launch(name, ATTENTION, kernels, total, flops)
    return Launch(name, MEMORY, kernels, total)


def _kind_of_product(a: Tensor, b: Tensor) -> str:
    """x @ weight.T forward; grad @ weight and grad.T @ x backward: told by what is transposed."""
    if a.stride(1) != 1:
        return WEIGHT_GRADIENT
    return INPUT_GRADIENT if b.stride(1) == 1 else PRODUCT


def _bytes(value: Any) -> int:
    """Of a tensor's elements, one that is expanded as it lies in memory; 0 for anything else."""
    if not isinstance(value, Tensor):
        return 0
    lengths = (size for size, stride in zip(value.shape, value.stride()) if stride or not size)
    return math.prod(lengths) * value.element_size()


def _storage(tensor: Any) -> int:
    return tensor.untyped_storage()._cdata
