"""The check of what a model costs."""

from gpt.compute import paper
from gpt.compute.own_costs import TOLERANCE, OwnCosts
from gpt.contract.subject import Subject
from gpt.errors import UserError

# other than those of the count
ROWS = 5


def are_counted(subject: Subject) -> str:
    """Its FLOPs can be counted, or are declared, and not below what is counted."""
    costs = OwnCosts(subject.architecture)
    flops = costs.flops
    if flops.counted is None:
        return f"{flops.declared:,} per token as declared; they cannot be counted"
    _require_no_more(subject)
    declared = "" if flops.declared is None else f", {flops.declared:,} declared"
    words = [f"{flops.counted:,} per token counted{declared}", *costs.notices]
    return "; ".join(words)


def _require_no_more(subject: Subject) -> None:
    """The count is made without values. Raise UserError where a CPU computes more, or more rows
    do."""
    # so short that attention is one call on a CPU too
    tokens = subject.batch(ROWS, subject.length)[:, 1:]
    with subject.running():
        computed = paper.operations(subject.model(), tokens).products
        try:
            model = subject.architecture.build().to("meta")
            counted = paper.operations(model, tokens[:2].to("meta")).products * ROWS // 2
        except (UserError, RuntimeError, NotImplementedError, TypeError):
            return  # then the count itself was made on a CPU
    if computed > (1 + TOLERANCE) * counted:
        raise UserError(
            f"{subject.code.path}: {ROWS} rows take {computed / ROWS:,.0f} FLOPs each on the CPU,"
            f" and {counted / ROWS:,.0f} where they are counted, of 2 rows without values",
            mend="let what it computes hang neither on the device nor on the number of rows",
        )
