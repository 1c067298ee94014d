"""The rules of a fair comparison, held against a pack."""

from typing import Any

from gpt.config.identity import MODEL_FILE
from gpt.config.own_code import TRUST
from gpt.errors import UserError
from gpt.packs.check_settings import expected_settings, flops_per_token, resolved
from gpt.packs.evidence import Evidence, LeftOut
from gpt.referee import fairness, measured_file, measurement, tuning
from gpt.referee.entry import BASELINE, CONTENDER, FLOPS, HOURS, SIDES
from gpt.wording import listed

SHOWN = 5  # settings in which a baseline is another run than its class


def are_kept(evidence: Evidence, problems: list[str]) -> str:
    """What `referee.py check` asks of an entry, of the configurations that were trained."""
    pair = _pair_of(evidence)
    for name, check in fairness.CHECKS:
        try:
            check(pair)
        except UserError as error:
            problems.append(f"{name}: {error.what}")
    words = [f"all {len(fairness.CHECKS)} of `check`", *_of_class(evidence)]
    words += [*_of_tuning(evidence), *_of_compute(evidence)]
    return "; ".join(words)


def _pair_of(evidence: Evidence) -> fairness.Pair:
    """Both sides as they were trained. Raises LeftOut where one is not there, or the dataset."""
    sides: dict[str, fairness.Side] = {}
    problems: list[str] = []
    settings = expected_settings(evidence, problems)
    if problems:
        raise UserError(problems[0])
    for run in evidence.present:
        if run.side not in sides:
            config = resolved(evidence, run, settings[run.side])
            sides[run.side] = fairness.Side(run.side, config, evidence.dataset(run.name))
    if len(sides) < len(SIDES):
        raise LeftOut("a side has no run")
    return fairness.Pair(evidence.entry, sides[BASELINE], sides[CONTENDER], has_budget=True)


def _of_class(evidence: Evidence) -> list[str]:
    """Whether the baseline is the run whose name the claim has, in words."""
    differences = fairness.differences_from_class(evidence.entry)
    if differences is None:
        return []
    file = f"ds_configs/{evidence.entry.claim.baseline}.json"
    if not differences:
        return [f"the baseline is {file}"]
    paths: list[Any] = [path for path, _, _ in differences]
    return [f"NOTE: the baseline is not {file}, but another run in {listed(paths, SHOWN)}"]


def _of_tuning(evidence: Evidence) -> list[str]:
    """What the trials of each side came to, in words."""
    entry = evidence.entry
    if not entry.tuning.trials:
        return []
    return [tuning.in_words(entry, side, flops_per_token(evidence)) for side in SIDES]


def _of_compute(evidence: Evidence) -> list[str]:
    """What equal compute rests on that only the pack's author has seen, in words."""
    entry = evidence.entry
    if entry.claim.over == FLOPS and not evidence.trusted:
        own = {run.side for run in evidence.present if evidence.options(run.name).get(MODEL_FILE)}
        if not own:
            return []
        return [
            f"NOTE: the FLOPs per token of the {' and the '.join(sorted(own))} are those that the"
            f" runs tell: read its model file, and give {TRUST} to have them counted"
        ]
    if entry.claim.over != HOURS:
        return []
    measured = measured_file.read(entry)
    ratio = measured.ratio
    words = (
        f"NOTE: {ratio.used:.4g} times the baseline's throughput (95%: {ratio.low:.4g} to"
        f" {ratio.high:.4g}) was measured on {measured.machine.get('device')} by whoever made the"
        " pack: measure again to hold it against"
    )
    return [words, *(f"NOTE: {doubt}" for doubt in measurement.doubts(measured))]
