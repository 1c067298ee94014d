"""A throughput belongs to the model that it was measured for: to its FLOPs per token, which follow
from shape, vocabulary and context, and to its precision."""

from gpt.config.draft import COMMAND_LINE, Draft

SPEED = "gpt.tokens_per_second"
FLOPS = "gpt.reference_flops_per_token"
PRECISION = "gpt.reference_precision"


def settle_reference(draft: Draft) -> None:
    """Note what a draft's throughput was measured for, or take it out where that is another model.

    A throughput that does not say what it was measured for belongs to the run as its file has it,
    and one from the command line to the run as it is.
    """
    speed = draft.get(SPEED)
    if speed is None or draft.model is None:
        return
    flops = draft.model.matmul_flops_per_token()
    precision = precision_of(draft)
    if draft.sources.get(SPEED) == COMMAND_LINE:
        for path, value in ((FLOPS, flops), (PRECISION, precision)):
            if draft.get(path) is None or draft.sources.get(path) != COMMAND_LINE:
                draft.put(path, value, "derived: the run's own, as of its tokens_per_second")
    reason = _stranger(draft, flops, precision)
    if reason is not None:
        for path in (SPEED, FLOPS, PRECISION):
            draft.remove(path)
        draft.notices.append(
            f"no reference hours: tokens_per_second {speed:,} {reason}; measure this model's with"
            " tools/throughput.py"
        )


def _stranger(draft: Draft, flops: int, precision: str) -> str | None:
    """How the model that the throughput was measured for differs from the run's; None where it does
    not."""
    measured_flops = draft.get(FLOPS)
    if measured_flops not in (None, flops):
        return (
            f"was measured for a model of {measured_flops:,} FLOPs per token, and this one takes"
            f" {flops:,}"
        )
    measured_precision = draft.get(PRECISION)
    if measured_precision not in (None, precision):
        return f"was measured in {measured_precision}, and this run is in {precision}"
    # as many FLOPs may lie in another shape, and a file may not say
    if draft.reshaped and draft.sources.get(SPEED) != COMMAND_LINE:
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
