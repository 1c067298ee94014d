"""Values that are right one by one and wrong together.

Each function looks for one contradiction. It asks the draft for values; one that is mistaken
already is None there, and what it is part of is left alone.
"""

from collections.abc import Iterator

from gpt.config.draft import Draft, Mistake, about
from gpt.config.optimizer_keys import COSINE

# type of a scheduler -> its parameter for the peak of the learning rate; "lr": the optimizer's
PEAKS = {
    "WarmupCosineLR": "lr",
    "WarmupLR": "warmup_max_lr",
    "WarmupDecayLR": "warmup_max_lr",
}


def contradictions(draft: Draft) -> list[Mistake]:
    """All contradictions in a draft whose values were checked one by one."""
    return [mistake for rule in RULES for mistake in rule(draft)]


def _two_precisions(draft: Draft) -> Iterator[Mistake]:
    if draft.get("fp16.enabled") and draft.get("bf16.enabled"):
        yield about("fp16.enabled", "and bf16.enabled are both true: choose one")


def _16_bits_without_zero(draft: Draft) -> Iterator[Mistake]:
    fp16, bf16 = draft.get("fp16.enabled"), draft.get("bf16.enabled")
    if fp16 and bf16:
        return
    if (fp16 or bf16) and draft.get("zero_optimization.stage") == 0:
        yield about(
            "zero_optimization.stage",
            "is 0 with 16-bit training, where DeepSpeed does not scale the loss rightly: use stage"
            " 1, 2 or 3",
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
        if device == "nvme" and not draft.get(f"{path}.nvme_path"):
            yield about(f"{path}.nvme_path", "is missing: the folder on the NVMe disk")


def _nesterov_without_momentum(draft: Draft) -> Iterator[Mistake]:
    params = "optimizer.params"
    if draft.get(f"{params}.nesterov") and not draft.get(f"{params}.momentum"):
        yield about(f"{params}.nesterov", f"needs {params}.momentum above 0")


def _evaluation_of_nothing(draft: Draft) -> Iterator[Mistake]:
    if draft.get("gpt.max_eval_steps") == 0:
        yield about(
            "gpt.max_eval_steps",
            "is 0, which scores nothing: give -1 for the whole split, or turn evaluation off with"
            " eval_every 0",
        )


def _two_learning_rates(draft: Draft) -> Iterator[Mistake]:
    lr = draft.get("optimizer.params.lr")
    if lr is not None and draft.get("scheduler.type") == COSINE:
        yield about(
            "optimizer.params.lr",
            f"is set beside {COSINE}, which owns the learning rate: leave it out and set"
            " scheduler.params.max_lr",
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
    peak = PEAKS.get(draft.get("scheduler.type"))
    if peak is None or draft.get("optimizer.params.lr") is not None:
        return
    if draft.get(f"scheduler.params.{peak}") is None:
        yield about(
            "optimizer.params.lr" if peak == "lr" else f"scheduler.params.{peak}",
            "is missing: the peak of the learning rate, which DeepSpeed would choose by itself",
        )


def _no_learning_rate(draft: Draft) -> Iterator[Mistake]:
    params = draft.get("optimizer.params")
    lr = draft.get("optimizer.params.lr")
    if "scheduler" not in draft.tree and params is not None and lr is None:
        yield about(
            "scheduler",
            "is missing, and so is the learning rate: give a scheduler, or optimizer.params.lr for"
            " a constant one",
        )


def _in_the_wrong_order(draft: Draft) -> Iterator[Mistake]:
    pairs = [("gpt.last_n", "gpt.seq_len")]
    if draft.get("scheduler.type") == COSINE:
        pairs.append(("scheduler.params.min_lr", "scheduler.params.max_lr"))
        pairs.append(("scheduler.params.warmup_steps", "scheduler.params.decay_steps"))
    for low_path, high_path in pairs:
        low, high = draft.get(low_path), draft.get(high_path)
        if low is not None and high is not None and low > high:
            yield about(low_path, f"is {low}, more than {high_path} {high}")


# in the order in which a report has them
RULES = (
    _two_precisions,
    _16_bits_without_zero,
    _sums_in_another_type,
    _offload,
    _nesterov_without_momentum,
    _evaluation_of_nothing,
    _two_learning_rates,
    _cycled_momentum,
    _no_peak,
    _no_learning_rate,
    _in_the_wrong_order,
)
