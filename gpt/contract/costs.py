"""The check of what a model costs."""

from gpt.compute.own_costs import flops_of
from gpt.contract.subject import Subject


def are_counted(subject: Subject) -> str:
    """Its FLOPs can be counted, or are declared, and not below what is counted."""
    flops = flops_of(subject.architecture)
    if flops.counted is None:
        return f"{flops.declared:,} per token as declared; they cannot be counted"
    declared = "" if flops.declared is None else f", {flops.declared:,} declared"
    return f"{flops.counted:,} per token counted{declared}"
