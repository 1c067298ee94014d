"""Values that are right one by one and wrong together.

Each function looks for one contradiction. It asks the draft for values; one that is mistaken
already is None there, and what it is part of is left alone.
"""

from collections.abc import Iterator

from gpt.config.draft import Draft, Mistake, about
from gpt.config.optimizer_contradictions import (
    OF_OPTIMIZER,
    OF_SCHEDULE,
    muon_and_sums_of_gradients,
)
from gpt.config.optimizer_keys import COOLDOWN, COSINE

# type of a scheduler -> pairs of its parameters, the smaller one first
PARAMS_IN_ORDER = {
    COSINE: (("min_lr", "max_lr"), ("warmup_steps", "decay_steps")),
    COOLDOWN: (("min_lr", "max_lr"),),
    "WarmupLR": (("warmup_min_lr", "warmup_max_lr"),),
    "WarmupDecayLR": (("warmup_min_lr", "warmup_max_lr"),),
    "OneCycle": (("cycle_min_lr", "cycle_max_lr"),),
}

# keys of DeepSpeed's that ask for something between the operations of a pass
BESIDE_BACKWARD = (
    "zero_optimization.overlap_comm",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler.enabled",
)


def contradictions(draft: Draft) -> list[Mistake]:
    """All contradictions in a draft whose values were checked one by one."""
    return [mistake for rule in RULES for mistake in rule(draft)]


def contradictions_of_the_batch(draft: Draft) -> list[Mistake]:
    """Those that are known once the batch is shared out."""
    return list(muon_and_sums_of_gradients(draft))


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


def _two_precisions(draft: Draft) -> Iterator[Mistake]:
    if draft.get("fp16.enabled") and draft.get("bf16.enabled"):
        yield about("fp16.enabled", "and bf16.enabled are both true: set one to false")


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


def _passes_as_one_graph(draft: Draft) -> Iterator[Mistake]:
    path = "gpt.cuda_graph"
    if not draft.get(path):
        return
    stage = draft.get("zero_optimization.stage")
    if stage not in (None, 1):
        yield about(path, f"is true, which needs zero_optimization.stage 1, and it is {stage}")
    if not draft.lacks("gpt.model_file"):
        yield about(
            path,
            "is true, and model_file's model may compute otherwise from pass to pass, where a graph"
            " repeats the first: leave one of them out",
        )
    compiled = draft.get("gpt.compile")
    if compiled not in (None, "none"):
        yield about(
            path,
            f"is true, and gpt.compile is {compiled}, which may compile anew at any step, where a"
            " graph stays as it is: give --compile none",
        )
    if draft.get("zero_optimization.offload_optimizer.device") not in (None, "none"):
        yield about(path, "is true, which keeps gradients on the GPU: leave offload_optimizer out")
    for name in BESIDE_BACKWARD:
        if draft.get(name):
            yield about(
                path,
                f"is true, and {name} works within each pass, where a graph is one whole: leave one"
                " of them out",
            )


def _evaluation_of_nothing(draft: Draft) -> Iterator[Mistake]:
    if draft.get("gpt.max_eval_steps") == 0:
        yield about(
            "gpt.max_eval_steps",
            "is 0, which scores nothing: give -1 for the whole split, or turn evaluation off with"
            " eval_every 0",
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
    *OF_OPTIMIZER,
    _passes_as_one_graph,
    _evaluation_of_nothing,
    *OF_SCHEDULE,
    _in_the_wrong_order,
)
