"""Which values are mistakes: alone, and beside others."""

from gpt.config import deepspeed_keys
from gpt.config.deepspeed_keys import REFUSED, TOP_KEYS
from gpt.config.keys import REQUIRED, Key, nearest


def contradictions(found):
    """Values that are right one by one and wrong together. What is part of a mistake already is
    left alone."""
    get = found.get
    stage = get("zero_optimization.stage")
    if get("fp16.enabled") and get("bf16.enabled"):
        found.mistake("fp16.enabled", "and bf16.enabled are both true: choose one")
    elif stage == 0 and (get("fp16.enabled") or get("bf16.enabled")):
        found.mistake(
            "zero_optimization.stage",
            "is 0 with 16-bit training, where DeepSpeed does not scale the loss "
            "rightly: use stage 1, 2 or 3",
        )
    sums = get("data_types.grad_accum_dtype")
    precision = next((name for name in ("fp16", "bf16") if get(f"{name}.enabled")), "fp32")
    if sums not in (None, "fp32", precision):
        found.mistake(
            "data_types.grad_accum_dtype",
            f"is {sums}, and the run is in {precision}: give fp32, or leave it out",
        )
    for block, needed in (("offload_optimizer", 1), ("offload_param", 3)):
        device = get(f"zero_optimization.{block}.device")
        if device not in (None, "none") and stage is not None and stage < needed:
            found.mistake(
                f"zero_optimization.{block}",
                f"needs stage {needed} or more, and the stage is {stage}",
            )
        if device == "nvme" and not get(f"zero_optimization.{block}.nvme_path"):
            found.mistake(
                f"zero_optimization.{block}.nvme_path", "is missing: the folder on the NVMe disk"
            )
    if get("optimizer.params.nesterov") and not get("optimizer.params.momentum"):
        found.mistake("optimizer.params.nesterov", "needs optimizer.params.momentum above 0")
    if get("gpt.max_eval_steps") == 0:
        found.mistake(
            "gpt.max_eval_steps",
            "is 0, which scores nothing: give -1 for the whole split, or turn evaluation "
            "off with eval_every 0",
        )
    kind, lr = get("scheduler.type"), get("optimizer.params.lr")
    if kind == deepspeed_keys.COSINE and lr is not None:
        found.mistake(
            "optimizer.params.lr",
            f"is set beside {deepspeed_keys.COSINE}, which owns the learning rate: leave it out "
            "and set scheduler.params.max_lr",
        )
    if kind == "OneCycle" and get("scheduler.params.cycle_momentum") is not False:
        found.mistake(
            "scheduler.params.cycle_momentum",
            "must be false: it would replace optimizer.params, where the decay of the "
            "moments is set",
        )
    peak = {
        "WarmupCosineLR": "lr",
        "WarmupLR": "warmup_max_lr",
        "WarmupDecayLR": "warmup_max_lr",
    }.get(kind)
    if peak and lr is None and get(f"scheduler.params.{peak}") is None:
        found.mistake(
            "optimizer.params.lr" if peak == "lr" else f"scheduler.params.{peak}",
            "is missing: the peak of the learning rate, which DeepSpeed would choose by itself",
        )
    if "scheduler" not in found.tree and lr is None and get("optimizer.params") is not None:
        found.mistake(
            "scheduler",
            "is missing, and so is the learning rate: give a scheduler, or optimizer.params.lr "
            "for a constant one",
        )
    pairs = [("gpt.last_n", "gpt.seq_len")]
    if kind == deepspeed_keys.COSINE:
        pairs += [
            ("scheduler.params.min_lr", "scheduler.params.max_lr"),
            ("scheduler.params.warmup_steps", "scheduler.params.decay_steps"),
        ]
    for low, high in pairs:
        if get(low) is not None and get(high) is not None and get(low) > get(high):
            found.mistake(low, f"is {get(low)}, more than {high} {get(high)}")


def check(block, keys, path="") -> list:
    """All mistakes in a JSON block against its table of keys: (path of the value, what is wrong
    with it)."""
    if not isinstance(block, dict):
        return [(path, f"is {block!r}, not a block {{…}}")]
    mistakes = []
    for name, value in block.items():
        where = f"{path}.{name}" if path else name
        key = keys.get(name)
        if key is None:
            mistakes.append((where, _unknown(name, where, keys)))
        elif name == "params" and "type" in keys:
            variant = key.get(block.get("type")) if isinstance(block.get("type"), str) else None
            mistakes += check(value, variant, where) if variant is not None else []
        elif isinstance(key, dict):
            mistakes += check(value, key, where)
        elif key.problem(value):
            mistakes.append((where, key.problem(value)))
    for name, key in keys.items():
        if isinstance(key, Key) and key.default is REQUIRED and name not in block:
            where = f"{path}.{name}" if path else name
            hint = key.doc if key.when_missing is None else key.when_missing
            mistakes.append((where, f"is missing: {hint}" if hint else "is missing"))
    return mistakes


def _unknown(name, where, keys):
    if where in REFUSED:
        return f"is not supported here: {REFUSED[where]}"
    homes = [home for home in _homes(TOP_KEYS, name) if home != where]
    close = nearest(name, keys)
    return (
        f"is not known there: it belongs in {' or '.join(homes)}"
        if homes and not close
        else f"is not a known key{close}"
    )


def _homes(keys, name, path=""):
    """Paths at which a key called `name` exists."""
    found = []
    for key, value in keys.items():
        where = f"{path}.{key}" if path else key
        if key == name:
            found.append(where)
        if isinstance(value, dict) and key == "params":
            found += (
                [f"{where}.{name}"] if any(name in variant for variant in value.values()) else []
            )
        elif isinstance(value, dict) and (
            not isinstance(value.get("enabled"), Key) or key in ("fp16", "bf16")
        ):
            # DeepSpeed's observers share names that nobody looks for there
            found += _homes(value, name, where)
    return found
