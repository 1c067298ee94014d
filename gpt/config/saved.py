"""config.yaml, the resolved configuration beside every checkpoint: written and read back."""

from dataclasses import asdict
from pathlib import Path

import yaml

from gpt.config.options import GPT_KEYS
from gpt.config.run_config import Config, leaves
from gpt.config.shape import ModelConfig
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.files import (
    write_atomically,
)

CONFIG = "config.yaml"


def read_config(path) -> dict:
    """The resolved configuration that stands beside a checkpoint or consolidated weights."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}; the"
            " config.yaml that was written beside the checkpoint is needed (--config_file)"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not YAML ({str(error).splitlines()[0]}): use the config.yaml that was"
            " written beside the checkpoint"
        ) from error
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("model"), dict)
        or not isinstance(found.get("run"), dict)
    ):
        raise UserError(
            f"{path} is not the config.yaml of a run: it lacks the blocks `model` and `run`"
        )
    return found


def write_config(path, config: dict):
    write_atomically(Path(path), yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def curve_settings(tree: dict) -> dict:
    """Of a config.yaml, the settings that make a curve another curve: shape, data, batch, schedule,
    precision, optimizer, seed, first weights."""
    run = tree["run"]
    gpt = run.get("gpt") or {}
    return {
        "model": tree["model"],
        "precision": tree.get("precision"),
        "scheduler": run.get("scheduler"),
        "optimizer": run.get("optimizer"),
        "gradient_clipping": run.get("gradient_clipping"),
        "train_batch_size": run.get("train_batch_size"),
        "seed": gpt.get("seed"),
        "init_from": gpt.get("init_from"),
        "dataset": (tree.get("dataset") or {}).get("fingerprint"),
    }


def model_config(config: dict, where) -> ModelConfig:
    """The shape in a config.yaml. Raises UserError where a value is missing or no whole number."""
    fields = ModelConfig.__dataclass_fields__
    found = {name: config["model"].get(name) for name in fields}
    wrong = [
        f"model.{name} {GPT_KEYS[name].problem(value)}"
        for name, value in found.items()
        if GPT_KEYS[name].problem(value)
    ]
    if wrong:
        raise UserError(
            f"{where}: {wrong[0]}; use the config.yaml that was written beside the checkpoint"
        )
    return ModelConfig(**found)


def foreign_config(name: str, step: int, shape: ModelConfig, vocab) -> dict:
    """config.yaml for weights that came from elsewhere: of their run it tells the shape and the
    tokenizer."""
    model = asdict(shape)
    return {
        "name": name,
        "step": step,
        "precision": "fp32",
        "model": model,
        "run": {"gpt": {**model}},
        "dataset": {"tokenizer": vocab.fingerprint},
    }


def require_run_config(path, config):
    """Raise UserError where a config.yaml lacks what all figures need."""
    needed = {f"model.{name}": int for name in ModelConfig.__dataclass_fields__}
    needed |= {"batch.global_size": int, "run.gpt.max_train_steps": int}
    for where, kind in needed.items():
        value = config
        for name in where.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(
                f"{path / CONFIG} does not tell {where}: use the file that training wrote"
            )
    unknown = sorted(set(config["model"]) - set(ModelConfig.__dataclass_fields__))
    if unknown:
        raise UserError(f"{path / CONFIG} has model.{unknown[0]}, which this version does not know")
    if not isinstance(config.get("dataset", {}), dict):
        raise UserError(f"{path / CONFIG}: dataset is no block: use the file that training wrote")
    speed = config["run"]["gpt"].get("tokens_per_second")
    if speed is not None and (
        isinstance(speed, bool) or not isinstance(speed, (int, float)) or not speed > 0
    ):
        raise UserError(
            f"{path / CONFIG}: run.gpt.tokens_per_second is {speed!r}, not a number above 0"
        )


def resolved(config: Config, dataset: Dataset) -> dict:
    """config.yaml: the resolved configuration and the dataset it runs on."""
    return {
        **config.as_dict(),
        "dataset": {
            "root": str(dataset.root),
            "fingerprint": dataset.fingerprint,
            "tokenizer": dataset.vocab.fingerprint,
        },
    }


def differences_of(old: dict, new: dict) -> dict:
    """{setting: sentence} of the settings by which two curves differ."""
    differences = {}
    then, now = curve_settings(old), curve_settings(new)
    for key in then:
        old_leaves, new_leaves = (dict(leaves({key: value})) for value in (then[key], now[key]))
        differences |= {
            path: f"{path} was {old_leaves.get(path)}, is {new_leaves.get(path)}"
            for path in {**old_leaves, **new_leaves}
            if old_leaves.get(path) != new_leaves.get(path)
        }
    return differences
