"""Values of the optimizer and the schedule that are right one by one and wrong together, as in
gpt.config.contradictions."""

from collections.abc import Iterator

from gpt.config.batch import ACCUMULATION
from gpt.config.draft import Draft, Mistake, about
from gpt.config.optimizer_keys import (
    COOLDOWN,
    COSINE,
    LION,
    MUON,
    OWN_SCHEDULERS,
    SCHEDULERS,
    WARMUP_STEPS,
)
from gpt.config.options import OPTIMIZER_FILE_KEY, OPTIMIZER_OPTIONS_KEY
from gpt.config.schedule import CooldownSchedule, own_schedule

# type of a scheduler -> its parameter for the peak of the learning rate; "lr": the optimizer's
PEAKS = {
    "WarmupCosineLR": "lr",
    "WarmupLR": "warmup_max_lr",
    "WarmupDecayLR": "warmup_max_lr",
}


def _optimizer_of_ones_own(draft: Draft) -> Iterator[Mistake]:
    if draft.lacks(OPTIMIZER_FILE_KEY):
        if not draft.lacks(OPTIMIZER_OPTIONS_KEY):
            yield about(OPTIMIZER_OPTIONS_KEY, "are given, and no optimizer_file they are for")
    elif None not in (draft.get(OPTIMIZER_FILE_KEY), draft.get("optimizer")):
        yield about(
            OPTIMIZER_FILE_KEY,
            "is set beside the block optimizer: leave one of them out (--optimizer null)",
        )


def _offload_of_others_than_adam(draft: Draft) -> Iterator[Mistake]:
    path = "zero_optimization.offload_optimizer"
    kind = draft.get("optimizer.type")
    is_own = draft.get(OPTIMIZER_FILE_KEY) is not None
    if draft.get(f"{path}.device") in (None, "none") or not (is_own or kind in (MUON, LION)):
        return
    name = "one of optimizer_file" if is_own else kind
    yield about(path, f"works with Adam, AdamW and SGD, and the optimizer is {name}: leave it out")


def _muon(draft: Draft) -> Iterator[Mistake]:
    if draft.get("optimizer.type") != MUON:
        return
    if draft.get("zero_optimization.stage") == 0:
        yield about(
            "zero_optimization.stage",
            f"is 0, where DeepSpeed's {MUON} would take q, k and v for one matrix: give 1, 2 or 3",
        )
    if draft.get("gradient_clipping"):
        yield about(
            "gradient_clipping",
            f"is {draft.get('gradient_clipping')}, and DeepSpeed would clip the steps of {MUON},"
            " not its gradients: give 0",
        )
    scheduler = draft.get("scheduler.type")
    scale = draft.get("optimizer.params.adam_lr_scale")
    if scheduler not in (None, *OWN_SCHEDULERS) and scale not in (None, 1):
        yield about(
            "scheduler.type",
            f"is {scheduler}, which sets one rate for all parameters, and"
            f" optimizer.params.adam_lr_scale is {scale}: give that 1, or a scheduler of the"
            f" trainer's own ({', '.join(OWN_SCHEDULERS)})",
        )
    if draft.get("zero_optimization.stage") == 3 and draft.get("zero_optimization.reduce_scatter"):
        yield about(
            "zero_optimization.reduce_scatter",
            f"is true, and {MUON} at stage 3 needs whole gradients on all ranks: leave it out",
        )


def _nesterov_of_what_sgd_has_not(draft: Draft) -> Iterator[Mistake]:
    params = "optimizer.params"
    momentum = draft.get(f"{params}.momentum")
    if draft.get(f"{params}.nesterov") and (momentum == 0 or draft.lacks(f"{params}.momentum")):
        yield about(f"{params}.nesterov", f"needs {params}.momentum above 0")
    elif draft.get(f"{params}.nesterov") and draft.get(f"{params}.dampening"):
        yield about(f"{params}.nesterov", f"needs {params}.dampening 0: leave that out")


def _amsgrad_of_deepspeed(draft: Draft) -> Iterator[Mistake]:
    params = "optimizer.params"
    if draft.get(f"{params}.amsgrad") and draft.get(f"{params}.torch_adam") is False:
        yield about(
            f"{params}.amsgrad", "is true, and DeepSpeed's Adam has none: leave torch_adam true"
        )


def _two_learning_rates(draft: Draft) -> Iterator[Mistake]:
    lr = draft.get("optimizer.params.lr")
    scheduler = draft.get("scheduler.type")
    if lr is not None and scheduler in OWN_SCHEDULERS:
        yield about(
            "optimizer.params.lr",
            f"is set beside {scheduler}, which owns the learning rate: leave it out and set"
            " scheduler.params.max_lr",
        )


def _branch(draft: Draft) -> Iterator[Mistake]:
    path = "gpt.branch_from"
    if draft.get(path) is None:
        return
    if draft.get("gpt.init_from") is not None:
        yield about(
            path,
            "is set beside gpt.init_from, and a branch begins with the weights of its trunk: leave"
            " one of them out",
        )
    is_mistaken = "scheduler.type" in draft.mistaken()
    if draft.get("scheduler.type") not in OWN_SCHEDULERS and not is_mistaken:
        yield about(
            path,
            f"needs a schedule of the trainer's own: set scheduler.type to {COOLDOWN} or {COSINE}",
        )


def _cycled_momentum(draft: Draft) -> Iterator[Mistake]:
    cycles = draft.get("scheduler.params.cycle_momentum")
    if draft.get("scheduler.type") == "OneCycle" and cycles is not False:
        yield about(
            "scheduler.params.cycle_momentum",
            "must be false: it would replace optimizer.params, where the decay of the moments is"
            " set",
        )


def _no_peak(draft: Draft) -> Iterator[Mistake]:
    kind = draft.get("scheduler.type")
    peak = PEAKS.get(kind)
    if peak is None:
        return
    if peak == "lr" and not draft.lacks(OPTIMIZER_FILE_KEY):
        return  # the rate that its file gives it
    path = "optimizer.params.lr" if peak == "lr" else f"scheduler.params.{peak}"
    # WarmupDecayLR takes its own default, 0.001, whatever the optimizer's is
    is_given = kind != "WarmupDecayLR" and not draft.lacks("optimizer.params.lr")
    if draft.lacks(path) and not is_given:
        yield about(
            path,
            "is missing: the peak of the learning rate, which DeepSpeed would choose by itself",
        )


def _no_learning_rate(draft: Draft) -> Iterator[Mistake]:
    if not draft.lacks(OPTIMIZER_FILE_KEY):
        return  # whose own rate is constant
    if draft.lacks("scheduler") and draft.lacks("optimizer.params.lr"):
        yield about(
            "scheduler",
            "is missing, and so is the learning rate: give a scheduler, or optimizer.params.lr for"
            " a constant one",
        )


def _no_step_after_warmup(draft: Draft) -> Iterator[Mistake]:
    total = draft.get("scheduler.params.total_num_steps")
    path = "scheduler.params.warmup_num_steps"
    warmup = draft.get(path)
    # the parameters of a scheduler that is none are not checked
    if total is None or draft.get("scheduler.type") is None:
        return
    if draft.lacks(path) and total <= WARMUP_STEPS:
        yield about(
            path,
            f"is missing, and DeepSpeed's {WARMUP_STEPS} steps would leave none of"
            f" total_num_steps {total} for the decay: give less",
        )
    if warmup is not None and total <= max(2, warmup):
        yield about(
            path, f"is {warmup}, which leaves no step of total_num_steps {total} for the decay"
        )


def _warmup_into_cooldown(draft: Draft) -> Iterator[Mistake]:
    block = draft.get("scheduler")
    are_right = block is not None and None not in map(
        draft.get, (f"scheduler.params.{name}" for name in SCHEDULERS[COOLDOWN])
    )
    if draft.get("scheduler.type") != COOLDOWN or not are_right:
        return
    schedule = own_schedule(block)
    assert isinstance(schedule, CooldownSchedule)
    if schedule.warmup_steps > schedule.cooldown_start:
        yield about(
            "scheduler.params.warmup_steps",
            f"is {schedule.warmup_steps}, and the cooldown begins after step"
            f" {schedule.cooldown_start}: give fewer, or a smaller cooldown_share",
        )


def muon_and_sums_of_gradients(draft: Draft) -> Iterator[Mistake]:
    """DeepSpeed's stage 2 keeps fp32 sums in one buffer, into which gradients that lie beside those
    of Muon do not find their way."""
    if draft.get("optimizer.type") != MUON or draft.get("zero_optimization.stage") != 2:
        return
    sums = draft.get("data_types.grad_accum_dtype")
    if sums is None and draft.get("bf16.enabled") and (draft.get(ACCUMULATION) or 1) > 1:
        sums = "fp32"
    if sums == "fp32" and (draft.get("bf16.enabled") or draft.get("fp16.enabled")):
        yield about(
            "zero_optimization.stage",
            f"is 2, where DeepSpeed loses gradients that 16-bit {MUON} sums in fp32: give 1 or 3",
        )


# in the order in which a report has them
OF_OPTIMIZER = (
    _optimizer_of_ones_own,
    _offload_of_others_than_adam,
    _muon,
    _nesterov_of_what_sgd_has_not,
    _amsgrad_of_deepspeed,
)
OF_SCHEDULE = (
    _two_learning_rates,
    _branch,
    _cycled_momentum,
    _no_peak,
    _no_learning_rate,
    _no_step_after_warmup,
    _warmup_into_cooldown,
)
