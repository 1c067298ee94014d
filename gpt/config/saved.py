"""config.yaml, the resolved configuration beside every checkpoint: written and read back.

    name         the run's name
    precision    what it trains in: fp32, fp16 or bf16
    kernels      triton or torch
    model        its shape
    parameters   counted from the module
    code         hashes of the code that makes its curve, and git's commit (gpt/config/code.py)
    batch        how a batch is shared out; `global_size` is train_batch_size
    run          all values as one JSON tree, which resolves to the same run again
    sources      {dotted path in `run`: where the value comes from}
    dataset      root, fingerprint, fingerprint of the tokenizer; documents of train, and of the
                 split that is scored
    model_file   name, hash and files of the model's own code, where it is no GPT; its FLOPs per
                 token, as they are used and as they were counted
    optimizer_file   the same of the optimizer's, where it is of the user's own
    changes      settings that were changed on resuming, each with its step
    began_from   the origin of its first weights, where they were not drawn: folder, step, sha256;
                 of a branch the trunk's checkpoint, its step and sha256, and the origin of the
                 trunk's first_weights, where they were not drawn

gpt/config/identity.py tells from it what the run is.

For weights that came from elsewhere there is less of it, and `step` too.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gpt.config.batch import ACCUMULATION, MICRO
from gpt.config.identity import CHANGES, MODEL_FILE, OPTIMIZER_FILE, RUN
from gpt.config.keys import Key
from gpt.config.run_config import Config
from gpt.config.shape import SHAPE_KEYS, ModelConfig
from gpt.config.well_formed import require_all_of_a_run, require_well_formed
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.parsing import ParseError, parse_yaml
from gpt.reading import read_text

CONFIG = "config.yaml"
# of a config.yaml, which has ten thousand
MOST_BYTES = 1 << 20
RIGHT_ONE = "use the config.yaml that was written beside the checkpoint"


def as_dict(config: Config) -> dict[str, Any]:
    """Plain values for config.yaml: all that a reader needs to know what was run, and where each
    value is from."""
    batch = asdict(config.batch)
    codes = {MODEL_FILE: config.model_code, OPTIMIZER_FILE: config.optimizer_code}
    own_code = {name: code.facts() for name, code in codes.items() if code is not None}
    return {
        "name": config.name,
        "precision": config.precision,
        "model": asdict(config.model),
        "batch": {"global_size": batch.pop("train_batch_size"), **batch},
        RUN: config.tree(),
        "sources": {path: source for path, _, source in config.values()},
        **own_code,
    }


def saved_config(
    config: Config,
    dataset: dict[str, Any],
    code: dict[str, Any],
    parameters: int,
    kernels: str | None,
    flops: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """config.yaml of a run: its configuration, and what else makes its curve.

    dataset: of gpt.data.datasets.Dataset.facts. code: of gpt.config.code.code_of. parameters: the
    module's. kernels: None where the device that they depend on is not known. flops: of a model
    file's module, per token.
    """
    tree = as_dict(config)
    if flops is not None and MODEL_FILE in tree:
        tree[MODEL_FILE] |= flops
    return {
        **tree,
        "kernels": kernels,
        "parameters": parameters,
        "code": code,
        "dataset": dataset,
        CHANGES: [],
    }


def foreign_config(name: str, step: int, shape: ModelConfig, tokenizer: str) -> dict[str, Any]:
    """config.yaml for weights that came from elsewhere: of their run it tells the shape and the
    tokenizer, by its fingerprint."""
    model = asdict(shape)
    return {
        "name": name,
        "step": step,
        "precision": "fp32",
        "model": model,
        RUN: {"gpt": dict(model)},
        "dataset": {"tokenizer": tokenizer},
    }


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice out twice, not as a reference to the first."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_config(path: str | Path, config: dict[str, Any]) -> None:
    """Write a config.yaml, whole or not at all."""
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_atomically(Path(path), text)


def read_config(path: str | Path) -> dict[str, Any]:
    """The resolved configuration that stands beside a checkpoint or consolidated weights.

    What it tells is of its type, within its limits, and does not contradict itself. Raises
    UserError where it cannot be read, or is none.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"cannot read {path}: {reason}; the config.yaml that was written beside the checkpoint"
            " is needed (--config_file)"
        ) from error
    try:
        config = parse_yaml(text)
    except ParseError as error:
        raise UserError(f"{path} is not YAML ({error})", mend=RIGHT_ONE) from error
    require_well_formed(path, config)
    return config


def read_run_config(path: str | Path) -> dict[str, Any]:
    """The resolved configuration of a run, which tells all that is known of every run; else as
    `read_config`."""
    config = read_config(path)
    require_all_of_a_run(path, config)
    return config


def run_to_repeat(path: Path, text: str) -> tuple[dict[str, Any], str]:
    """(the run's JSON, the run's name) of a config.yaml that is given as a config, by its text.

    Its micro batch is solved again for the present ranks. Raises UserError where it is none.
    """
    mend = "give a .json file, or a run's own config.yaml"
    try:
        config = parse_yaml(text)
    except ParseError as error:
        raise UserError(f"{path} is not YAML ({error})", mend=mend) from error
    if not _has_block(config, RUN):
        raise UserError(f"{path} is not the config.yaml of a run", mend=mend)
    run = config[RUN]
    run.pop(MICRO, None)
    limit = config["batch"].get("micro_limit") if _has_block(config, "batch") else None
    if limit is not None:
        run.pop(ACCUMULATION, None)
        run[MICRO] = limit
    name = config.get("name")
    problem = Key(str).problem(name)
    if problem:
        raise UserError(f"{path}: name {problem}", mend="give the run's name")
    return run, name


def _has_block(config: Any, name: str) -> bool:
    return isinstance(config, dict) and isinstance(config.get(name), dict)


def model_config(config: dict[str, Any], where: str | Path) -> ModelConfig:
    """The shape in a config.yaml. where: what messages call the file. Raises UserError where a
    value is missing or no whole number."""
    shape = {name: config["model"].get(name) for name in SHAPE_KEYS}
    for name, value in shape.items():
        problem = SHAPE_KEYS[name].problem(value)
        if problem:
            raise UserError(
                f"{where}: model.{name} {problem}",
                mend=RIGHT_ONE,
            )
    return ModelConfig(**shape)
