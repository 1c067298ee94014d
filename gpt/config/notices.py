"""What a user should know of a run whose values are no mistake: a schedule of another length than
the run, a shape that an override made, keys without effect.

Each function asks the draft for values; one that is mistaken is None there.
"""

from collections.abc import Iterator

from gpt.config.draft import Draft
from gpt.config.keys import Key
from gpt.config.optimizer_keys import COOLDOWN, COSINE, CYCLE_STEPS, WARMUP_STEPS
from gpt.config.option_names import key_at, option_of
from gpt.config.options import OPTIMIZER_FILE_KEY, TRIAL_STEPS
from gpt.config.reference import precision_of
from gpt.config.run_config import leaves
from gpt.config.schedule import own_schedule
from gpt.config.shape import load_presets

# scheduler -> the parameter that tells its end
LENGTHS = {
    COSINE: "decay_steps",
    COOLDOWN: "decay_steps",
    "WarmupLR": "warmup_num_steps",
    "WarmupDecayLR": "total_num_steps",
    "WarmupCosineLR": "total_num_steps",
}
# scheduler -> its learning rate after its end
RATES_AFTER = {
    COSINE: "min_lr",
    COOLDOWN: "min_lr",
    "WarmupDecayLR": "a learning rate of 0",
    "WarmupCosineLR": "its smallest learning rate",
    "OneCycle": "cycle_min_lr",
}
# elements of a bucket whose memory counts
LARGE_BUCKET = 10**8
# how the meaning of a key begins that nothing depends on
NO_EFFECT = "no effect"


def notices(draft: Draft) -> list[str]:
    """Sentences about a draft that has been checked; none about one with mistakes."""
    if draft.mistakes:
        return []
    return [sentence for rule in RULES for sentence in rule(draft)]


def _an_optimizer_on_trial(draft: Draft) -> Iterator[str]:
    stage = draft.get("zero_optimization.stage")
    if draft.get(OPTIMIZER_FILE_KEY) is not None and stage:
        yield (
            f"optimizer_file is taken to work element by element, as ZeRO stage {stage} needs it,"
            f" since it does in a trial of {TRIAL_STEPS} steps; one that looks at whole matrices"
            " later on needs --zero_optimization.stage 0"
        )


def _schedule_of_another_length(draft: Draft) -> Iterator[str]:
    run = draft.get("gpt.max_train_steps")
    kind = draft.get("scheduler.type")
    end = _end_of_schedule(draft, kind)
    if not run or end is None or end == run:
        return
    if kind == "WarmupLR":
        if run < end:
            yield (
                f"warm-up ends at step {end}, the run at {run}: the learning rate never reaches its"
                f" peak; shorter: {option_of('scheduler.params.warmup_num_steps')}"
            )
        return
    mend = "give cycle_first_step_size and cycle_second_step_size for a cycle of the run's length"
    change = "scheduler.params.cycle_first_step_size"
    if kind in LENGTHS:
        change = f"scheduler.params.{LENGTHS[kind]}"
        mend = f"for one of the run's length give {option_of(change)} {run}"
    ends = f"the schedule ends at step {end}, the run at {run}"
    if run < end:
        yield f"{ends}: {_rate_at(draft, kind, run)}; {mend}"
    else:
        yield (
            f"{ends}: the last {run - end} step(s) are made at {RATES_AFTER[kind]}; {mend}, and"
            f" --allow_change {change} where the run has begun"
        )


def _rate_at(draft: Draft, kind: str, step: int) -> str:
    schedule = own_schedule(draft.get("scheduler"))
    if schedule is None:
        return "the learning rate does not come down all the way"
    if schedule.lr(step) == schedule.max_lr:
        return f"the learning rate is max_lr {schedule.max_lr:g} to the end"
    return (
        f"the learning rate comes down to {schedule.lr(step):.3g} there, not to min_lr"
        f" {schedule.min_lr:g}"
    )


def _end_of_schedule(draft: Draft, kind: str | None) -> int | None:
    """The step from which the learning rate stays as it is; None: never, or not known."""
    if kind == "OneCycle":
        decays = draft.get("scheduler.params.decay_step_size")
        rise = draft.get("scheduler.params.cycle_first_step_size") or CYCLE_STEPS
        fall = draft.get("scheduler.params.cycle_second_step_size")
        return None if decays else rise + (rise if fall is None else fall)
    never_falls = kind == COOLDOWN and draft.get("scheduler.params.cooldown_share") == 0
    if kind not in LENGTHS or never_falls:
        return None
    end = draft.get(f"scheduler.params.{LENGTHS[kind]}")
    return WARMUP_STEPS if end is None and kind == "WarmupLR" else end


def _unused_learning_rate(draft: Draft) -> Iterator[str]:
    lr = draft.get("optimizer.params.lr")
    kind = draft.get("scheduler.type")
    peaks = {
        "WarmupLR": "warmup_max_lr",
        "WarmupDecayLR": "warmup_max_lr",
        "OneCycle": "cycle_max_lr",
        "LRRangeTest": "lr_range_test_min_lr",
    }
    if lr is None or kind not in peaks:
        return
    peak = draft.get(f"scheduler.params.{peaks[kind]}")
    if peak != lr and (peak is not None or kind == "LRRangeTest"):
        yield f"optimizer.params.lr {lr:g} has no effect: {kind} goes by {peaks[kind]}"


def _unusual_shape(draft: Draft) -> Iterator[str]:
    h_dim, mlp_dim = draft.get("gpt.h_dim"), draft.get("gpt.mlp_dim")
    n_heads, head_dim = draft.get("gpt.n_heads"), draft.get("gpt.head_dim")
    if None in (h_dim, mlp_dim, n_heads, head_dim):
        return
    of_presets = [
        (preset["h_dim"], preset["n_heads"], preset["head_dim"])
        for preset in load_presets().values()
    ]
    if n_heads * head_dim != h_dim and (h_dim, n_heads, head_dim) not in of_presets:
        yield (
            f"the heads are together {n_heads * head_dim} wide ({n_heads} x {head_dim}), the stream"
            f" is {h_dim}: give --n_heads and --head_dim if that is not meant"
        )
    is_widened = _is_of_preset(draft, "mlp_dim") and not _is_of_preset(draft, "h_dim")
    if mlp_dim != 4 * h_dim and is_widened:
        yield (
            f"mlp_dim is still the preset's {mlp_dim}, and h_dim {h_dim}: give --mlp_dim"
            f" {4 * h_dim} for an MLP 4 times as wide"
        )


def _is_of_preset(draft: Draft, name: str) -> bool:
    return draft.sources.get(f"gpt.{name}", "").startswith("preset ")


def _without_effect(draft: Draft) -> Iterator[str]:
    stage = draft.get("zero_optimization.stage")
    idle: list[str] = []
    of_stage_3: list[str] = []
    for path, _ in leaves(draft.tree):
        key = key_at(path)
        is_derived = draft.sources.get(path, "").startswith(("default", "derived"))
        if not isinstance(key, Key) or is_derived:
            continue
        if key.doc.startswith(NO_EFFECT):
            idle.append(path)
        elif stage not in (None, 3) and _is_of_stage_3(path, key):
            of_stage_3.append(path)
    if idle:
        yield f"without effect: {', '.join(idle)} (ds_configs/README.md tells why)"
    if of_stage_3:
        yield f"without effect at ZeRO stage {stage}, being of stage 3: {', '.join(of_stage_3)}"


def _bucket_of_many_models(draft: Draft) -> Iterator[str]:
    path = "zero_optimization.reduce_bucket_size"
    size = draft.get(path)
    model = draft.model
    if model is None or not size or not draft.get("zero_optimization.stage"):
        return
    if draft.model_code is not None:  # whose parameters are not known yet
        return
    parameters = model.parameters()
    width = 4 if precision_of(draft) == "fp32" else 2
    if size > max(10 * parameters, LARGE_BUCKET):
        yield (
            f"{path} {size:,} takes {size * width / 1e9:,.1f} GB of each rank, and the"
            f" model has {parameters:,} parameters: as many are enough"
        )


def _division_that_stage_1_ignores(draft: Draft) -> Iterator[str]:
    scatters = draft.get("zero_optimization.reduce_scatter") is not False
    if draft.get("zero_optimization.stage") != 1 or not scatters:
        return
    for path, usual in (("prescale_gradients", False), ("gradient_predivide_factor", 1)):
        if draft.get(path) not in (None, usual):
            yield f"{path} has no effect at ZeRO stage 1 unless reduce_scatter is false"


def _is_of_stage_3(path: str, key: Key) -> bool:
    name = path.rpartition(".")[2]
    return name.startswith("stage3_") or key.doc.startswith("stage 3")


RULES = (
    _an_optimizer_on_trial,
    _schedule_of_another_length,
    _unused_learning_rate,
    _unusual_shape,
    _without_effect,
    _bucket_of_many_models,
    _division_that_stage_1_ignores,
)
