"""Code of the user's own that a run takes part of itself from: a model file, an optimizer file.

Read once, hashed, and run from what was read: the file, and the files that it imports from beside
it. A package beside it is no part of it, and is imported as everything else that is installed.
"""

import argparse
import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.config.code import PACKAGE, SHORT
from gpt.errors import UserError, in_brief
from gpt.reading import read_bytes

# model files that come with the trainer, each called by its name alone
VARIANTS = PACKAGE / "variants"
# of one file, and of the files that one may bring
MOST_BYTES = 1 << 20
MOST_FILES = 64
# that a file can have beside a run's weights
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.py")
# the option by which code that came with weights is run
TRUST = "--trust_model_file"


@dataclass(frozen=True)
class OwnCode:
    """A file of Python and what it imports from beside it, as they were when they were read."""

    path: Path  # of the file itself
    files: Mapping[str, bytes]  # {name: content}, the file itself first

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def hash(self) -> str:
        return hash_of(self.name, self._digests())

    def __str__(self) -> str:
        return f"{self.name} {self.hash}"

    def facts(self) -> dict[str, Any]:
        """{"name", "hash", "files": {name: sha256}} for a config.yaml."""
        return {"name": self.name, "hash": self.hash, "files": self._digests()}

    def _digests(self) -> dict[str, str]:
        return {name: hashlib.sha256(text).hexdigest() for name, text in self.files.items()}


def hash_of(name: str, files: Mapping[str, str]) -> str:
    """12 characters that are the same for the same code, wherever it lies, whatever it is called.

    name: of the file itself. files: {name: sha256} of it and of what it imports, which does so by
    their names.
    """
    content = hashlib.sha256(files[name].encode())
    for other in sorted(files):
        if other != name:
            content.update(f"\0{other}\0{files[other]}".encode(errors="backslashreplace"))
    return content.hexdigest()[:SHORT]


def read_own_code(text: str, option: str) -> OwnCode:
    """The code that a setting names: a path, or the name of a variant that comes with the trainer.

    option: what messages call the setting. Raises UserError.
    """
    path = variant_called(text) or Path(text)
    mend = f"give a file of Python{_or_a_variant(option)}"
    if path.suffix != ".py":
        raise UserError(f"{option} is {text!r}, which is no file of Python", mend=mend)
    files: dict[str, bytes] = {}
    waiting = [path.name]
    while waiting:
        name = waiting.pop(0)
        if name in files:
            continue
        if len(files) == MOST_FILES:
            raise UserError(f"{option} {path} imports more than {MOST_FILES} files from beside it")
        if not FILE_NAME.fullmatch(name):
            raise UserError(
                f"{option}: {path.parent / name} has a name that no checkpoint can keep",
                mend="let it be of letters, digits, - and _",
            )
        files[name] = _read(path.parent / name, option, mend)
        waiting += _imported(files[name], path.with_name(name), option)
    return OwnCode(path, files)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """The option of every command that may run code which came with weights."""
    parser.add_argument(
        TRUST,
        action="store_true",
        help="run the model file that came with the weights, where their model is built by one",
    )


def variant_called(name: str) -> Path | None:
    """The file of a variant that comes with the trainer; None where it has none of that name."""
    path = VARIANTS / f"{name}.py"
    return path if name.isidentifier() and path.is_file() else None


def variants() -> list[str]:
    """Names of the variants that come with the trainer."""
    return sorted(path.stem for path in VARIANTS.glob("*.py") if path.stem != "__init__")


def _or_a_variant(option: str) -> str:
    return f", or one of {', '.join(variants())}" if option.endswith("model_file") else ""


def _read(path: Path, option: str, mend: str) -> bytes:
    try:
        text = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise UserError(f"{option}: {in_brief(error, path)}", mend=mend) from error
    # git may check a file out with other ends of lines
    return text.replace(b"\r\n", b"\n")


def _imported(text: bytes, path: Path, option: str) -> list[str]:
    """Names of the files beside a module that it imports, at its top or inside of its functions."""
    try:
        tree = ast.parse(text, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else path
        reason = getattr(error, "msg", None) or in_brief(error)
        raise UserError(f"{option}: {place} is no Python ({reason})", mend="mend it") from error
    found = []
    for module in dict.fromkeys(_modules_of(tree)):
        file = path.with_name(f"{module}.py")
        if not file.is_file():
            continue
        if _is_installed(module, path.parent):
            raise UserError(
                f"{option}: {file} has the name of an installed package, {module!r}",
                mend="rename it",
            )
        found.append(file.name)
    return found


def _modules_of(tree: ast.AST) -> Iterator[str]:
    """First names of the modules that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _is_installed(name: str, folder: Path) -> bool:
    """Whether a name is a module's of Python, or a package's that is loaded from elsewhere."""
    if name in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and folder.resolve() not in Path(file).resolve().parents
