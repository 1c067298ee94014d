"""What a run that goes on from a checkpoint may change of its settings, and what is said of it."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from gpt.config.identity import TOKENIZER, curve, differences_of, is_free
from gpt.config.option_names import OVERRIDES, key_at
from gpt.config.shape import SHAPE_KEYS
from gpt.errors import UserError
from gpt.training import run_documents
from gpt.wording import listed, nearest, plural

# prefixes of the settings that a checkpoint's tensors and states have their shapes from, or that
# say what its ids mean
FIXED = ("model.", "optimizer.type", "scheduler.type", TOKENIZER)


def compare(
    old: dict, new: dict, allowed: Iterable[str], run_dir: Path, own: Collection[str] = ()
) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """({setting: (value before, value now)} of what differs, those of them that must not) of the
    config.yaml of a checkpoint's run and of the run that goes on from it. Raises UserError for what
    nothing allows.

    allowed: settings, or blocks of them. It may name what does not differ any more: the same
    command, given again, goes on. own: those that the run has for itself. run_dir: of the
    checkpoint's run.
    """
    differences = {}
    for path, values in differences_of(old, new).items():
        if not _names(own, path):
            differences[path] = values
    _require_allowable(allowed, differences, old, new, run_dir)
    refused = []
    for path in differences:
        if not is_free(path) and not _names(allowed, path):
            refused.append(path)
    return differences, refused


def how_to_allow(paths: Sequence[str]) -> str:
    """The end of a sentence on settings that are refused: what allows them, where anything does."""
    fixed = [path for path in paths if path.startswith(FIXED)]
    if fixed:
        return f" ({listed(fixed, shown=3)} cannot change within a run)"
    options = " ".join(f"--allow_change {path}" for path in paths)
    return f"; {options} allows the change on purpose"


def setting_called(key: str) -> str:
    """A setting by its path, whether it is called so or by its option: max_lr, gpt.seed."""
    path = OVERRIDES.get(key, key).removeprefix("gpt.")
    return f"model.{path}" if path in SHAPE_KEYS else path


def _names(keys: Iterable[str], path: str) -> bool:
    """Whether one of the keys is a path, or a block around it."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def in_words(path: str, values: tuple[Any, Any]) -> str:
    before, now = ("not set" if value is None else value for value in values)
    return f"{path} was {before}, is {now}"


def difference_in_words(
    path: str, values: tuple[Any, Any], old: dict, new: dict, run_dir: Path
) -> str:
    """A difference between two config.yaml, the documents' by their names where they are known."""
    if path == TOKENIZER:
        return f"{path} is another one"
    if path not in ("dataset.train", "dataset.scored"):
        return in_words(path, values)
    part = path.partition(".")[2]
    before, now = old["dataset"], new["dataset"]
    split = before[part]["split"]
    words = run_documents.what_changed(run_dir, split, before["fingerprint"], now["root"])
    if words is None:
        was, now_is = (
            f"{plural(tree[part]['count'], 'document')} of {tree[part]['bytes']} bytes"
            for tree in (before, now)
        )
        words = f"{was}, now {now_is}"
    return f"{path} has other documents ({words})"


def _require_allowable(
    allowed: Iterable[str],
    differences: dict[str, tuple[Any, Any]],
    old: dict,
    new: dict,
    run_dir: Path,
) -> None:
    settings = {**curve(old), **curve(new), **differences}
    for key in allowed:
        below = [path for path in settings if _names([key], path)]
        # one that is as it is by itself is no setting that is told
        if not below and key_at(key) is None:
            raise UserError(
                f"--allow_change {key}: no setting that makes a curve is called"
                f" so{nearest(key, settings)}; what differs from the checkpoint:"
                f" {', '.join(differences) or 'nothing'}"
            )
        for path in below:
            if path in differences and path.startswith(FIXED):
                words = difference_in_words(path, differences[path], old, new, run_dir)
                raise UserError(
                    f"--allow_change {key}: {words}, and that cannot change within a run",
                    mend="name another --run_dir",
                )
