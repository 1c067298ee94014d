"""Files of the user's own as modules of Python, run from what was read of them."""

import builtins
import hashlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gpt.config.code import PACKAGE
from gpt.config.option_names import option_of
from gpt.config.own_code import OwnCode
from gpt.errors import RunError, UserError, in_brief
from gpt.wording import nearest

# names of the modules that own code becomes
_OWN = "own_"
BUILD = "build"
MEND = "mend it; tools/check_model.py tries a model file on its own"
# what code of others may raise; an interrupt goes through
_ANY = (Exception, SystemExit)
# what is not its fault
_OF_THE_MACHINE = (UserError, RunError, MemoryError, torch.OutOfMemoryError)
# parts of paths: code in which ranks wait for each other, called by hooks on the user's modules
_OF_RANKS = ("/deepspeed/", "/torch/distributed/")


def function_of(code: OwnCode, name: str, signature: str) -> Callable:
    """A function that the file defines. signature: what a message says that it should be. Raises
    UserError where the file cannot be run, or defines none."""
    function = getattr(_module_of(code), name, None)
    if not callable(function):
        raise UserError(f"{code.path} defines no {name}", mend=f"define {signature}")
    return function


def require_options(
    code: OwnCode, build: Callable, options: Mapping[str, Any], path: str, given: int
) -> None:
    """Raise UserError where the file's build does not take the options that a run has for it,
    or lacks one that it needs.

    path: of the options in a configuration. given: number of build's arguments before them.
    """
    try:
        signature = inspect.signature(build)
    except ValueError:  # of what is written in C
        return
    parameters = list(signature.parameters.values())[given:]
    kinds = {parameter.kind for parameter in parameters}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = {p.name: p.default is inspect.Parameter.empty for p in parameters if p.kind in by_name}
    which = f"it takes {', '.join(taken)}" if taken else "it takes none"
    for name in options:
        if name not in taken and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise UserError(
                f"{code.path}: {BUILD} takes no option {name!r}{nearest(name, taken)}",
                mend=f"change {option_of(path)}.{name} ({which})",
            )
    for name, is_needed in taken.items():
        if is_needed and name not in options:
            raise UserError(
                f"{code.path}: {BUILD} needs the option {name!r}",
                mend=f"give {option_of(path)}.{name}",
            )


@contextmanager
def telling(code: OwnCode, what: str, mend: str = MEND) -> Iterator[None]:
    """Whatever the user's code raises inside becomes a UserError that names its line.

    what: of it that is run. mend: what to do.
    """
    try:
        yield
    except _OF_THE_MACHINE:
        raise
    except _ANY as error:
        place = _place_in(code, error)
        if place is None:
            raise
        raise UserError(
            f"{place}: {what} fails ({in_brief(error)})",
            mend=mend,
        ) from error


def _place_in(code: OwnCode, error: BaseException) -> str | None:
    """The innermost line of the user's code that an error went through; None where it is not that
    code's."""
    own = [str(code.path.with_name(name)) for name in code.files]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in own:
            return f"{frame.filename}:{frame.lineno}"
        if any(part in frame.filename for part in _OF_RANKS) or "CUDA error" in str(error):
            return None
    return str(code.path)


def _module_of(code: OwnCode) -> ModuleType:
    """Run once for each content at each place; what it imports from beside it stands below it, so
    that files of the same names elsewhere do not meet."""
    place = hashlib.sha256(str(code.path.resolve()).encode()).hexdigest()[:8]
    name = f"{_OWN}{code.hash}_{place}"
    if name not in sys.modules:
        modules, path = set(sys.modules), [*sys.path]
        with telling(code, "importing it"):
            _Importer(code, name).run(code.name, name)
        added = [folder for folder in sys.path if folder not in path]
        _require_kept(code, set(sys.modules) - modules, added)
    return sys.modules[name]


def _require_kept(code: OwnCode, names: Iterable[str], added: Iterable[str]) -> None:
    """Raise UserError where modules that the code has loaded are neither among its files nor
    installed: no run would keep them, nor notice that they changed.

    added: folders in which the code has Python look for modules.
    """
    own = [folder.resolve() for folder in (Path(), code.path.parent, *map(Path, added))]
    installed = [Path(path) for path in sysconfig.get_paths().values()]
    others = [folder.resolve() for folder in (*installed, PACKAGE)]
    for name in sorted(names):
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or name.startswith(_OWN):
            continue
        folders = set(Path(file).resolve().parents)
        if folders & set(own) and not folders & set(others):
            raise UserError(
                f"{code.path} imports {name} from {file}, which the run could not keep",
                mend=f"put it into one file beside {code.name}, or install it",
            )


class _Importer:
    """Imports of one OwnCode's files, at their top or later, from what was read of them."""

    def __init__(self, code: OwnCode, root: str):
        self._code = code
        self._root = root
        names = vars(builtins)
        self._builtins = {**names, "__import__": self._import}

    def run(self, file: str, name: str) -> ModuleType:
        """The module of a file. name: in sys.modules, where dataclasses and compilers look."""
        path = str(self._code.path.with_name(file))
        module = ModuleType(name)
        module.__file__ = path
        vars(module)["__builtins__"] = self._builtins
        sys.modules[name] = module
        try:
            exec(compile(self._code.files[file], path, "exec"), vars(module))
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        file = f"{name}.py"
        if level or file not in self._code.files:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        own_name = self._root if file == self._code.name else f"{self._root}.{name}"
        return sys.modules.get(own_name) or self.run(file, own_name)
