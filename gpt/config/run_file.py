"""The file that says what a run is: its JSON, or the config.yaml of an earlier run."""

import json
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

from gpt.config import saved
from gpt.config.identity import MODEL_FILE, OPTIMIZER_FILE
from gpt.config.keys import block_of
from gpt.config.own_code import variant_called
from gpt.config.run_config import value_at
from gpt.errors import UserError
from gpt.escaping import in_one_line
from gpt.parsing import ParseError, lines_of_keys, parse_json
from gpt.reading import read_text
from gpt.wording import nearest

# the folder of the configs that come with the trainer
SHIPPED = "ds_configs"
# of a run's JSON, which has two thousand
MOST_BYTES = 1 << 20
# files of the user's own -> options by which the command line names one, or does without
REPLACED_BY = {
    MODEL_FILE: ("gpt.model_file",),
    OPTIMIZER_FILE: ("gpt.optimizer_file", "optimizer.type"),
}


def read_file(path: str | Path, overrides: Container[str] = ()) -> tuple[Any, str, dict[str, int]]:
    """(tree, the run's name, {dotted path: line}) of a run's JSON file, or of the config.yaml of an
    earlier run, whose tree it holds.

    overrides: dotted paths of the values that the command line gives. Raises UserError where the
    file is not readable, where a key stands twice in one block, and where the config.yaml names
    code that the command line does not.
    """
    if not str(path):
        raise UserError("the config's name is empty", mend="give a file")
    path = Path(path)
    text = _read_text(path)
    if path.suffix in (".yaml", ".yml"):
        tree, name = saved.run_to_repeat(path, text)
        _require_named_code(path, tree, overrides)
        return tree, name, _lines_below(saved.RUN, text)
    return _parse_json(path, text), path.stem, _lines_of_json(text)


def _require_named_code(path: Path, tree: Any, overrides: Container[str]) -> None:
    """Raise UserError where a run's config.yaml would have code of somebody's own run: it comes
    with weights, and they run none by themselves."""
    for file, instead in REPLACED_BY.items():
        text = value_at(tree, f"gpt.{file}")
        is_ours = isinstance(text, str) and variant_called(text) is not None
        if text is None or is_ours or any(option in overrides for option in instead):
            continue
        raise UserError(
            f"{path}: gpt.{file} is {text}, and a config.yaml runs no code by itself",
            mend=f"give --{file} {text} to have that file run",
        )


def _read_text(path: Path) -> str:
    try:
        # some editors put a byte order mark in front
        return read_text(path, MOST_BYTES, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = _nearest_file(path) if isinstance(error, FileNotFoundError) else ""
        name = in_one_line(str(path))
        raise UserError(f"cannot read the config {name}: {reason}{hint}") from error


def _nearest_file(path: Path) -> str:
    """The words (did you mean …?) for the shipped config, or the file beside it, whose name is
    closest."""
    files = [*path.parent.glob("*.json"), *Path(SHIPPED).glob("*.json")]
    hint = nearest(str(path), map(str, files))
    return hint or nearest(f"{SHIPPED}/{path.stem}.json", map(str, files))


def _parse_json(path: Path, text: str) -> Any:
    try:
        return parse_json(text, block_of=partial(block_of, place=str(path)))
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{place}: not valid JSON ({error.msg})") from error
    except ParseError as error:
        raise UserError(f"{path}: not a run's JSON ({error})") from error


def _lines_of_json(text: str) -> dict[str, int]:
    """JSON is YAML, whose parser tells where things stand."""
    try:
        return lines_of_keys(text.replace("\t", " "))
    # JSON that this YAML reader does not take: messages go without line numbers
    except ParseError:
        return {}


def _lines_below(block: str, text: str) -> dict[str, int]:
    """{dotted path within a block of YAML: line in the whole text}."""
    within = {}
    for path, line in lines_of_keys(text).items():
        if path.startswith(f"{block}."):
            within[path.removeprefix(f"{block}.")] = line
    return within
