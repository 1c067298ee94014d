"""All checks of a model file that need one process and no accelerator, in their order."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from gpt.contract import building, costs, gradients, outputs
from gpt.contract.subject import Check, Subject
from gpt.errors import UserError


class NamedCheck(NamedTuple):
    """A check, and what a line of the report calls it."""

    name: str
    check: Check
    is_needed: bool = False  # whether nothing after it can be looked at where it fails


CHECKS = (
    NamedCheck("imports", building.imports, is_needed=True),
    NamedCheck("builds", building.builds, is_needed=True),
    NamedCheck("builds again", building.builds_again),
    NamedCheck("outputs", outputs.makes_outputs, is_needed=True),
    NamedCheck("repeatable", outputs.is_repeatable),
    NamedCheck("rows", outputs.rows_are_independent),
    NamedCheck("causal", outputs.is_causal),
    NamedCheck("loss", outputs.is_blind_to_targets),
    NamedCheck("bf16", outputs.is_near_in_bf16),
    NamedCheck("gradients", gradients.reach_every_parameter),
    NamedCheck("derivative", gradients.are_right),
    NamedCheck("accumulation", gradients.add_up),
    NamedCheck("checkpointing", gradients.survive_checkpointing),
    NamedCheck("FLOPs", costs.are_counted),
)


class Result(NamedTuple):
    """Of a check."""

    name: str
    seen: str  # a few words, or the sentence of what is wrong
    is_right: bool


def _in_silence(name: str) -> None:
    pass


def run(
    subject: Subject,
    checks: Iterable[NamedCheck],
    tell: Callable[[Result], object],
    begin: Callable[[str], object] = _in_silence,
) -> list[Result]:
    """What checks find, each told at once; up to the first that the others need. begin: gets the
    name of each before it is made."""
    results = []
    for name, check, is_needed in checks:
        begin(name)
        try:
            result = Result(name, check(subject), is_right=True)
        except UserError as error:
            result = Result(name, str(error), is_right=False)
        results.append(result)
        tell(result)
        if is_needed and not result.is_right:
            break
    return results
