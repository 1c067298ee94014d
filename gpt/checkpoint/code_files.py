"""Code of the user's own that lies with weights: written beside them, and run where it may be.

Weights run no code by themselves. What came with them is run where the user says so
(--trust_model_file), and only as config.yaml tells it; a model file that is a variant of this
trainer's own is run from here.

    runs/24h/code/               the run's own files
    runs/24h/checkpoints/global_step1000/my_model.py …      in each checkpoint, and in each export
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.architecture.architecture import Architecture
from gpt.checkpoint.folders import CODE_FOLDER
from gpt.config.identity import ARGUMENTS_OF, MODEL_FILE, RUN, code_in_words
from gpt.config.own_code import MOST_BYTES, TRUST, OwnCode, read_own_code, variants
from gpt.config.saved import CONFIG, model_config
from gpt.errors import UserError, in_brief
from gpt.files import write_atomically
from gpt.reading import read_bytes

_OTHER = "get the folder anew, or use another one"


def write_code(folder: Path, codes: Iterable[OwnCode]) -> list[str]:
    """Write the files of own code into a folder, flat; returns their names. Raises OSError."""
    names = []
    for code in codes:
        for name, text in code.files.items():
            write_atomically(folder / name, text)
            names.append(name)
    return names


def keep_code(run_dir: Path, codes: Sequence[OwnCode]) -> None:
    """Write a run's own code into its folder. Raises OSError."""
    folder = run_dir / CODE_FOLDER
    if not codes:
        return
    folder.mkdir(exist_ok=True)
    write_code(folder, codes)


def architecture_of(
    config: dict[str, Any], config_file: Path | str, folder: Path, trusted: bool
) -> Architecture:
    """The model of weights, by their config.yaml. config_file: what mistakes in it are told of.
    folder: where the weights lie. trusted: whether the code beside them may be run.

    Raises UserError where it may not, or is not the code that config.yaml tells.
    """
    shape = model_config(config, config_file)
    facts = config.get(MODEL_FILE)
    if facts is None:
        return Architecture(shape)
    require_trust(config, folder, trusted)
    code = _own_variant(facts) or _code_beside(config, folder)
    options = (config[RUN].get("gpt") or {}).get(ARGUMENTS_OF[MODEL_FILE]) or {}
    return Architecture(shape, code, options)


def require_trust(config: Mapping[str, Any], folder: Path, trusted: bool) -> None:
    """Raise UserError where a model needs code that came with its weights, and that may not be
    run."""
    facts = config.get(MODEL_FILE)
    if facts is None or trusted or _own_variant(facts) is not None:
        return
    raise UserError(
        f"{folder}: the model is built by code that came with its weights,"
        f" {code_in_words(facts)}, which is no variant of this trainer's",
        mend=f"read {folder / facts['name']}, and give {TRUST} to have it run",
    )


def _own_variant(facts: Mapping[str, Any]) -> OwnCode | None:
    """The trainer's own variant that is this code to the letter."""
    for name in variants():
        code = read_own_code(name, MODEL_FILE)
        if code.hash == facts["hash"]:
            return code
    return None


def _code_beside(config: Mapping[str, Any], folder: Path) -> OwnCode:
    """The model file that lies with weights, held against their config.yaml."""
    facts = config[MODEL_FILE]
    first = facts["name"]
    texts = {name: _read(folder / name) for name in [first, *facts["files"]]}
    code = OwnCode(folder / first, texts)
    for name, sha256 in code.facts()["files"].items():
        if sha256 != facts["files"][name]:
            raise UserError(
                f"{folder / name} is not the file that {CONFIG} tells (its sha256 differs)",
                mend=_OTHER,
            )
    _require_no_more(config, folder)
    return code


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path}, of the model's code, is missing", mend=_OTHER) from error
    except OSError as error:
        raise UserError(in_brief(error, path), mend=_OTHER) from error


def _require_no_more(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError where a file of Python lies with weights that is no part of their run."""
    known = set()
    for block in ARGUMENTS_OF:
        known |= set((config.get(block) or {}).get("files", ()))
    for name in sorted(os.listdir(folder)):
        # hidden ones are a file system's own
        if name.endswith(".py") and name[0] != "." and name not in known:
            raise UserError(
                f"{folder / name} is no part of the code that {CONFIG} tells",
                mend="move it away: nobody knows whether the model means it",
            )
