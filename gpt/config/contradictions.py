"""Values that are right one by one and wrong together.

Each function looks for one contradiction. It asks the draft for values; one that is mistaken
already is None there, and what it is part of is left alone.
"""

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
from gpt.config.options import OPTIMIZER_FILE, OPTIMIZER_OPTIONS
from gpt.config.schedule import CooldownSchedule, own_schedule

# type of a scheduler -> its parameter for the peak of the learning rate; "lr": the optimizer's
PEAKS = {
    "WarmupCosineLR": "lr",
    "WarmupLR": "warmup_max_lr",
    "WarmupDecayLR": "warmup_max_lr",
}
# type of a scheduler -> pairs of its parameters, the smaller one first
PARAMS_IN_ORDER = {
    COSINE: (("min_lr", "max_lr"), ("warmup_steps", "decay_steps")),
    COOLDOWN: (("min_lr", "max_lr"),),
    "WarmupLR": (("warmup_min_lr", "warmup_max_lr"),),
    "WarmupDecayLR": (("warmup_min_lr", "warmup_max_lr"),),
    "OneCycle": (("cycle_min_lr", "cycle_max_lr"),),
}


def contradictions(draft: Draft) -> list[Mistake]:
    """All contradictions in a draft whose values were checked one by one."""
    return [mistake for rule in RULES for mistake in rule(draft)]


def contradictions_of_the_batch(draft: Draft) -> list[Mistake]:
    """Those that are known once the batch is shared out."""
    return list(_muon_and_sums_of_gradients(draft))


def _muon_and_sums_of_gradients(draft: Draft) -> Iterator[Mistake]:
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


def _two_precisions(draft: Draft) -> Iterator[Mistake]:
    if draft.get("fp16.enabled") and draft.get("bf16.enabled"):
        yield about("fp16.enabled", "and bf16.enabled are both true: choose one")


def _16_bits_without_zero(draft: Draft) -> Iterator[Mistake]:
    fp16, bf16 = draft.get("fp16.enabled"), draft.get("bf16.enabled")
    if fp16 and bf16:
        return
    if not (fp16 or bf16) or draft.get("zero_optimization.stage") != 0:
        return
    reason = "where gradients that are not finite would reach the weights"
    block = "bf16"
    if fp16:
        reason = "where DeepSpeed does not scale the loss rightly"
        block = "fp16"
    yield about(
        "zero_optimization.stage",
        f"is 0 with 16-bit training, {reason}: use stage 1, 2 or 3, or train in fp32 with"
        f" --zero_optimization.stage 0 --{block}.enabled false",
    )


def _sums_in_another_type(draft: Draft) -> Iterator[Mistake]:
    precision = "fp32"
    for name in ("fp16", "bf16"):
        if draft.get(f"{name}.enabled"):
            precision = name
    sums = draft.get("data_types.grad_accum_dtype")
    if sums not in (None, "fp32", precision):
        yield about(
            "data_types.grad_accum_dtype",
            f"is {sums}, and the run is in {precision}: give fp32, or leave it out",
        )


def _offload(draft: Draft) -> Iterator[Mistake]:
    stage = draft.get("zero_optimization.stage")
    for block, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        path = f"zero_optimization.{block}"
        device = draft.get(f"{path}.device")
        if device not in (None, "none") and stage is not None and stage < lowest:
            yield about(path, f"needs stage {lowest} or more, and the stage is {stage}")
        if device == "nvme" and draft.lacks(f"{path}.nvme_path"):
            yield about(f"{path}.nvme_path", "is missing: the folder on the NVMe disk")


def _offload_in_part(draft: Draft) -> Iterator[Mistake]:
    path = "zero_optimization.offload_optimizer.ratio"
    ratio = draft.get(path)
    stage = draft.get("zero_optimization.stage")
    if ratio in (None, 1) or stage is None:
        return
    if stage != 3:
        yield about(path, f"is {ratio}, which needs stage 3, and the stage is {stage}")
    elif draft.get("optimizer.params.torch_adam") or draft.get("optimizer.type") == "SGD":
        yield about(path, f"is {ratio}, which needs an Adam with optimizer.params.torch_adam false")


def _amsgrad_of_deepspeed(draft: Draft) -> Iterator[Mistake]:
    params = "optimizer.params"
    if draft.get(f"{params}.amsgrad") and draft.get(f"{params}.torch_adam") is False:
        yield about(
            f"{params}.amsgrad", "is true, and DeepSpeed's Adam has none: leave torch_adam true"
        )


def _odd_bucket(draft: Draft) -> Iterator[Mistake]:
    size = draft.get("zero_optimization.allgather_bucket_size")
    if draft.get("zero_optimization.stage") in (1, 2) and size is not None and size % 2:
        yield about("zero_optimization.allgather_bucket_size", f"is {size}, must be even")


def _divided_before_the_sum(draft: Draft) -> Iterator[Mistake]:
    """DeepSpeed's stages 2 and 3 have neither key beside reduce_scatter."""
    stage = draft.get("zero_optimization.stage")
    scatters = draft.get("zero_optimization.reduce_scatter") is not False
    if stage not in (2, 3) or not scatters:
        return
    if draft.get("prescale_gradients"):
        yield about(
            "prescale_gradients",
            f"is true, which stage {stage} has only with zero_optimization.reduce_scatter false",
        )
    factor = draft.get("gradient_predivide_factor")
    if factor not in (None, 1):
        yield about(
            "gradient_predivide_factor",
            f"is {factor}, which stage {stage} has only with"
            " zero_optimization.reduce_scatter false",
        )


def _loading(draft: Draft) -> Iterator[Mistake]:
    zero = "zero_optimization"
    if draft.get(f"{zero}.load_from_fp32_weights") is False:
        yield about(
            f"{zero}.load_from_fp32_weights",
            "is false, with which a run that goes on would be another: leave it out",
        )
    stage = draft.get(f"{zero}.stage")
    if draft.get(f"{zero}.pipeline_loading_checkpoint") and stage not in (None, 3):
        yield about(
            f"{zero}.pipeline_loading_checkpoint",
            f"is true, with which no run of stage {stage} can go on: leave it out",
        )


def _optimizer_of_ones_own(draft: Draft) -> Iterator[Mistake]:
    if draft.lacks(OPTIMIZER_FILE):
        if not draft.lacks(OPTIMIZER_OPTIONS):
            yield about(OPTIMIZER_OPTIONS, "are given, and no optimizer_file they are for")
    elif None not in (draft.get(OPTIMIZER_FILE), draft.get("optimizer")):
        yield about(
            OPTIMIZER_FILE,
            "is set beside the block optimizer: leave one of them out (--optimizer null)",
        )


def _offload_of_others_than_adam(draft: Draft) -> Iterator[Mistake]:
    path = "zero_optimization.offload_optimizer"
    kind = draft.get("optimizer.type")
    is_own = draft.get(OPTIMIZER_FILE) is not None
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


def _of_the_gpt_alone(draft: Draft) -> Iterator[Mistake]:
    """What asks for the modules of the GPT by name, or for code that there is none of."""
    if draft.lacks("gpt.model_file"):
        if not draft.lacks("gpt.model_options"):
            yield about("gpt.model_options", "are given, and no model_file that they are for")
        return
    if (draft.get("gpt.log_activations_every") or 0) > 0:
        yield about(
            "gpt.log_activations_every",
            "looks into the blocks of the GPT, and model_file has others: give 0",
        )


def _nesterov_of_what_sgd_has_not(draft: Draft) -> Iterator[Mistake]:
    params = "optimizer.params"
    momentum = draft.get(f"{params}.momentum")
    if draft.get(f"{params}.nesterov") and (momentum == 0 or draft.lacks(f"{params}.momentum")):
        yield about(f"{params}.nesterov", f"needs {params}.momentum above 0")
    elif draft.get(f"{params}.nesterov") and draft.get(f"{params}.dampening"):
        yield about(f"{params}.nesterov", f"needs {params}.dampening 0: leave that out")


def _evaluation_of_nothing(draft: Draft) -> Iterator[Mistake]:
    if draft.get("gpt.max_eval_steps") == 0:
        yield about(
            "gpt.max_eval_steps",
            "is 0, which scores nothing: give -1 for the whole split, or turn evaluation off with"
            " eval_every 0",
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
    if peak == "lr" and not draft.lacks(OPTIMIZER_FILE):
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
    if not draft.lacks(OPTIMIZER_FILE):
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


def _in_the_wrong_order(draft: Draft) -> Iterator[Mistake]:
    pairs = [("gpt.last_n", "gpt.seq_len")]
    for low, high in PARAMS_IN_ORDER.get(draft.get("scheduler.type"), ()):
        pairs.append((f"scheduler.params.{low}", f"scheduler.params.{high}"))
    for low_path, high_path in pairs:
        low, high = draft.get(low_path), draft.get(high_path)
        if high is None and high_path.endswith("warmup_max_lr"):
            high_path = "optimizer.params.lr"
            high = draft.get(high_path)
        if low is not None and high is not None and low > high:
            yield about(low_path, f"is {low}, more than {high_path} {high}")


# in the order in which a report has them
RULES = (
    _of_the_gpt_alone,
    _two_precisions,
    _16_bits_without_zero,
    _sums_in_another_type,
    _offload,
    _offload_in_part,
    _odd_bucket,
    _divided_before_the_sum,
    _loading,
    _optimizer_of_ones_own,
    _offload_of_others_than_adam,
    _muon,
    _nesterov_of_what_sgd_has_not,
    _amsgrad_of_deepspeed,
    _evaluation_of_nothing,
    _two_learning_rates,
    _branch,
    _cycled_momentum,
    _no_peak,
    _no_learning_rate,
    _no_step_after_warmup,
    _warmup_into_cooldown,
    _in_the_wrong_order,
)
