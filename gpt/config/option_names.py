"""Names of the command line's options, and the dotted paths of the values that they set.

Every key of a run's JSON is an option by its dotted path, such as --optimizer.params.weight_decay.
The keys of the block "gpt", and what the seed project had options for, have a name of their own.
"""

from typing import Any

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.keys import ARGUMENTS, Key
from gpt.config.optimizer_keys import COSINE
from gpt.config.options import GPT_KEYS

# Options that belong to DeepSpeed's keys. All but the last carry the seed project's names.
DEEPSPEED_OPTIONS = {
    "train_batch_size": "train_batch_size",
    "train_micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "grad_clip_norm": "gradient_clipping",
    "max_lr": "scheduler.params.max_lr",
    "min_lr": "scheduler.params.min_lr",
    "warmup_steps": "scheduler.params.warmup_steps",
    "decay_steps": "scheduler.params.decay_steps",
    "cooldown_share": "scheduler.params.cooldown_share",
}
# option -> dotted path of the value that it overrides
OVERRIDES = {**DEEPSPEED_OPTIONS, **{name: f"gpt.{name}" for name in GPT_KEYS}}
_NAMES = {path: name for name, path in OVERRIDES.items()}


def option_of(path: str) -> str:
    """The option that sets the value at a dotted path: by its name if it has one."""
    return f"--{_NAMES.get(path, path)}"


def path_of(option: str) -> str | None:
    """The dotted path that an option such as --max_lr sets; None where it is no such option.

    All that has a dot is a path, and so are the keys and blocks of the JSON's top level.
    """
    name = option.removeprefix("--")
    if name == option:
        return None
    block, dot, argument = name.partition(".")
    if dot and is_of_arguments(OVERRIDES.get(block, "")):
        return f"{OVERRIDES[block]}.{argument}"
    is_path = "." in name or name in TOP_KEYS
    return OVERRIDES.get(name, name if is_path else None)


def key_at(path: str) -> Key | dict[str, Any] | None:
    """The key at a dotted path, or the keys of the block there; None where there is neither.

    Parameters of an optimizer or scheduler are looked for in all types; the trainer's own schedules
    come first.
    """
    keys: Any = TOP_KEYS
    for name in path.split("."):
        if not isinstance(keys, dict):
            return None
        if COSINE in keys or "Adam" in keys:
            # one of the tables by type
            keys = next((params[name] for params in keys.values() if name in params), None)
        else:
            keys = keys.get(name)
    return keys


def is_of_arguments(path: str) -> bool:
    """Whether the value at a dotted path is a block of arguments, which has no table of keys."""
    key = key_at(path)
    return isinstance(key, Key) and key.kind == ARGUMENTS


def homes(name: str) -> list[str]:
    """Dotted paths at which a run's JSON has a key or block called `name`."""
    return _homes(TOP_KEYS, name)


def _homes(keys: dict[str, Any], name: str, path: str = "") -> list[str]:
    places = []
    for key, value in keys.items():
        where = f"{path}.{key}" if path else key
        if key == name:
            places.append(where)
        if not isinstance(value, dict):
            continue
        if key == "params":
            if any(name in params for params in value.values()):
                places.append(f"{where}.{name}")
        elif not _is_observer(key, value):
            places += _homes(value, name, where)
    return places


def _is_observer(name: str, keys: dict[str, Any]) -> bool:
    """Whether a block is one of DeepSpeed's observers, whose keys share names that nobody looks
    for there."""
    return isinstance(keys.get("enabled"), Key) and name not in ("fp16", "bf16")
