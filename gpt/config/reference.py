"""A throughput belongs to the model that it was measured for: to its FLOPs per token, which follow
from shape, vocabulary and context, or to its model file, options and shape; and to its
precision."""

from gpt.config.draft import COMMAND_LINE, Draft
from gpt.config.run_config import digest_of_model

SPEED = "gpt.tokens_per_second"
FLOPS = "gpt.reference_flops_per_token"
MODEL = "gpt.reference_model"
PRECISION = "gpt.reference_precision"


def settle_reference(draft: Draft) -> None:
    """Note what a draft's throughput was measured for, or take it out where that is another model.

    A throughput that does not say what it was measured for belongs to the run as its file has it,
    and one from the command line to the run as it is.
    """
    speed = draft.get(SPEED)
    if speed is None or draft.model is None:
        return
    own = _facts_of(draft)
    if draft.sources.get(SPEED) == COMMAND_LINE:
        for path, value in own.items():
            if draft.get(path) is not None and draft.sources.get(path) == COMMAND_LINE:
                continue
            if value is None:
                draft.remove(path)
            else:
                draft.put(path, value, "derived: the run's own, as of its tokens_per_second")
    reason = _stranger(draft, own)
    if reason is not None:
        for path in (SPEED, FLOPS, MODEL, PRECISION):
            draft.remove(path)
        draft.notices.append(
            f"no reference hours: tokens_per_second {speed:,} {reason}; measure this model's with"
            " tools/throughput.py"
        )


def _facts_of(draft: Draft) -> dict[str, int | str | None]:
    """{path: value} of what the run's own throughput would be measured for. What a model file takes
    of FLOPs is known when its module is built, and follows from its digest."""
    assert draft.model is not None
    flops = model = None
    if draft.model_code is None:
        flops = draft.model.matmul_flops_per_token()
    else:
        options = draft.get("gpt.model_options")
        model = digest_of_model(draft.model_code, options, draft.model)
    return {FLOPS: flops, MODEL: model, PRECISION: precision_of(draft)}


def _stranger(draft: Draft, own: dict[str, int | str | None]) -> str | None:
    """How the model that the throughput was measured for differs from the run's; None where it does
    not."""
    measured_flops = draft.get(FLOPS)
    measured_model = draft.get(MODEL)
    flops = own[FLOPS]
    if measured_model != own[MODEL] and (measured_model or measured_flops):
        return "was measured for another model: its file, its options or its shape was another"
    if flops is not None and measured_flops not in (None, flops):
        return (
            f"was measured for a model of {measured_flops:,} FLOPs per token, and this one takes"
            f" {flops:,}"
        )
    measured_precision = draft.get(PRECISION)
    if measured_precision not in (None, own[PRECISION]):
        return f"was measured in {measured_precision}, and this run is in {own[PRECISION]}"
    # as many FLOPs may lie in another shape, and a file may not say
    if draft.reshaped and measured_model is None and draft.sources.get(SPEED) != COMMAND_LINE:
        return (
            f"is that of the file's model, and the command line changes {', '.join(draft.reshaped)}"
        )
    return None


def precision_of(draft: Draft) -> str:
    """fp32, fp16 or bf16."""
    for name in ("fp16", "bf16"):
        if draft.get(f"{name}.enabled"):
            return name
    return "fp32"
