"""From a file of the user's to the module that it builds.

A model file defines

    build(shape, **options) -> nn.Module

shape is a Shape. The module maps tokens (B, T) int64 to hidden states (B, T, C), and its attribute
`output_layer` names the submodule whose weight (V, C) makes logits of them; without that attribute
it maps tokens to logits (B, T, V), which takes more memory. It never sees targets: the loss is the
trainer's own.

What the module may have besides:

    logit_cap                        logits become logit_cap * tanh(logits / logit_cap)
    flops_per_token                  of its matrix products in training, where counting cannot tell
    initial_weight(name, shape, generator) -> Tensor
                                     first values of each parameter; without it those that build
                                     gives them, after torch.manual_seed
    without_gradient                 names of parameters that may stay without a gradient
"""

import dataclasses
import hashlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gpt.config.own_code import OwnCode
from gpt.config.shape import ModelConfig
from gpt.errors import UserError, in_brief

BUILD = "build"
# what code of others may raise; an interrupt goes through
_ANY = (Exception, SystemExit)


@dataclasses.dataclass(frozen=True)
class Shape(ModelConfig):
    """What `build` gets: the sizes of a ModelConfig, and which kernels the run computes with."""

    # "torch" or "triton", for functions of gpt.kernels that take it
    kernels: str = "torch"


def build_module(
    code: OwnCode,
    shape: ModelConfig,
    options: Mapping[str, Any],
    kernels: str = "torch",
    seed: int | None = None,
) -> nn.Module:
    """What a model file's `build` returns: its parameters on torch's meta device, or, where there
    is a seed, on the CPU with the values that they begin with. Its buffers have their values.

    Raises UserError where the file cannot do it.
    """
    build = load(code).__dict__[BUILD]
    full_shape = Shape(**dataclasses.asdict(shape), kernels=kernels)
    parameters = _on_paper() if seed is None else _drawn_from(seed)
    with telling(code, BUILD), torch.device("cpu"), parameters:
        module = build(full_shape, **options)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{code.path}: {BUILD} returns {type(module).__name__}, not a torch.nn.Module",
            mend="return the model",
        )
    return module


def load(code: OwnCode) -> ModuleType:
    """The module of Python that a model file is, run from what was read of it. Raises UserError
    where it defines no `build`, or cannot be run."""
    name = _name_of(code)
    module = sys.modules.get(name)
    if module is None:
        module = _run(code, name)
    if not callable(getattr(module, BUILD, None)):
        raise UserError(
            f"{code.path} defines no {BUILD}", mend="define build(shape, **options) -> nn.Module"
        )
    return module


@contextmanager
def telling(code: OwnCode, what: str) -> Iterator[None]:
    """Whatever the user's code raises inside becomes a UserError that names its line.

    what: of it that is run.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except _ANY as error:
        raise UserError(
            f"{_place_in(code, error)}: {what} fails ({in_brief(error)})",
            mend="mend it; tools/check_model.py tries a model file on its own",
        ) from error


def _place_in(code: OwnCode, error: BaseException) -> str:
    """The innermost line of the user's code that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{code.path.parent / name}" for name in code.files]
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames if frame.filename in own]
    return lines[-1] if lines else str(code.path)


def _name_of(code: OwnCode) -> str:
    """Of the module in sys.modules: one for each content, at each place."""
    place = hashlib.sha256(str(code.path.resolve()).encode()).hexdigest()[:8]
    return f"own_{code.hash}_{place}"


def _run(code: OwnCode, name: str) -> ModuleType:
    finder = _Beside(code)
    module = finder.module(name, code.path.name)
    sys.modules[name] = module
    try:
        with finder.serving(), telling(code, "importing it"):
            finder.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Beside(MetaPathFinder, Loader):
    """Imports of files that were read, from what was read of them."""

    def __init__(self, code: OwnCode):
        self._code = code

    def module(self, name: str, file: str) -> ModuleType:
        """An empty module, to be run. file: among those of the code."""
        path = self._code.path.with_name(file)
        spec = ModuleSpec(name, self, origin=str(path))
        spec.has_location = True
        module = ModuleType(name)
        module.__spec__ = spec
        module.__file__ = str(path)
        module.__loader__ = self
        return module

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside, the names of the files beside the code are theirs, whatever else bears them."""
        names = [file.removesuffix(".py") for file in self._code.files]
        others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            for name in names:
                sys.modules.pop(name, None)
            sys.modules.update(others)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file = f"{fullname}.py"
        return self.module(fullname, file).__spec__ if file in self._code.files else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None and module.__spec__.origin is not None
        path = module.__spec__.origin
        text = self._code.files[Path(path).name]
        exec(compile(text, path, "exec"), module.__dict__)


@contextmanager
def _on_paper() -> Iterator[None]:
    """Inside, every parameter that a module takes lies on the meta device, without values; one
    that several modules share stays one."""
    register = nn.Module.register_parameter
    moved: dict[nn.Parameter, nn.Parameter] = {}

    def register_on_paper(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            parameter = moved[parameter]
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_paper  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
