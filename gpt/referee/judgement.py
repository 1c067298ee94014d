"""The verdict: whether a contender is better than its baseline at equal compute, and how sure.

First question: would other seeds say the same? The means of both sides in nats per byte are held
against each other by Welch's t test, or, where both began with the same weights under every seed,
by the t test of the pairs. Second question: would other text say the same? A bootstrap over the
documents of the split, both sides' mean over their seeds, tells.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.metrics.events import finite
from gpt.referee import entry as entries
from gpt.referee import scores, starts
from gpt.referee.scores import SeedScore, Side, Sides
from gpt.referee.worth import Worth, worth_of
from gpt.results.bootstrap import DocumentInterval, over_documents
from gpt.results.document_sums import DocumentSums
from gpt.results.intervals import LEVEL, Difference, paired, welch
from gpt.results.power import resolvable, seeds_for_equivalence, seeds_needed

BETTER = "better"
WORSE = "worse"
EQUIVALENT = "equivalent"
NOT_SHOWN = "not shown"
NO_VERDICT = "no verdict"
# of token perplexity: differences below it are none in practice
MARGIN = 0.005
SIGNIFICANT = 1 - LEVEL
# seeds a side for which the judgement tells what they would resolve
PLANNED_SEEDS = (3, 5, 10)


@dataclass(frozen=True)
class Power:
    """deviation: of a seed's nats per byte; where sides are paired, of the pairs' differences.
    resolved: {seeds a side: the true difference in token perplexity, relative, that they find in
    four of five experiments}. needed: seeds a side for a true difference as large as the measured
    one; for_equivalence: to show of sides without any difference that they are equivalent; None
    beyond a thousand."""

    deviation: float
    resolved: Mapping[int, float]
    needed: int | None
    for_equivalence: int | None


@dataclass(frozen=True)
class Judgement:
    """What is known of a contender against its baseline. Differences are the contender's mean minus
    the baseline's: negative is better."""

    name: str  # of the contender
    sides: Sides
    is_paired: bool
    per_byte: Difference | None  # of nats; None where a side has no finished seed
    per_token: Difference | None  # likewise, and where the tokenizers differ
    margin: float  # in nats per byte, within which sides are equivalent
    documents: DocumentInterval | None  # of nats per byte; None where documents were not kept
    worth: Worth | None  # None where the baseline has no ladder
    verdict: str
    sentence: str
    claim: str | None = None  # what its entry says of it: BETTER or EQUIVALENT
    notices: tuple[str, ...] = ()

    @property
    def bears_claim(self) -> bool:
        """Whether what its entry claims is shown. What is better or worse by less than the margin
        is equivalent as well."""
        if self.claim == EQUIVALENT and self.verdict in (BETTER, WORSE):
            assert self.per_byte is not None, "it has a verdict"
            return self.per_byte.p_equivalent(self.margin) < SIGNIFICANT
        return self.verdict == self.claim

    @cached_property
    def power(self) -> Power | None:
        """None where one seed alone tells no deviation."""
        if self.per_byte is None:
            return None
        return _power(self.sides, self.is_paired, self.per_byte.value, self.margin)


def of_paths(
    paths: Sequence[Path],
    baseline: Sequence[Path] | None = None,
    ladder: Sequence[Path] | None = None,
    over: str | None = None,
) -> Judgement:
    """Of an entry's folder, a pack's, or of a contender's runs and those of the baseline.

    ladder: the baseline's runs at other compute; an entry may keep them in its folder `ladder`.
    over: one of OVER, of runs; an entry declares it. Raises UserError.
    """
    is_entry = len(paths) == 1 and (paths[0] / entries.FILE).is_file()
    if is_entry:
        if baseline or over:
            raise UserError(
                f"command line: the entry {paths[0]} has a baseline of its own",
                mend="leave --baseline and --over out",
            )
        entry = entries.read(paths[0])
        notices = (*starts.require_record(entry),)
        sides = scores.of_entry(entry)
        if ladder is None and entry.ladder.is_dir():
            ladder = [entry.ladder]
        judged = judge(sides, ladder or ())
        notices += judged.notices
        return replace(judged, claim=entry.claim.direction, notices=notices)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist", mend="give an entry's folder, or runs")
    if not baseline:
        raise UserError(
            f"{paths[0]} holds no entry (no {entries.FILE}), and no --baseline says what its runs"
            " are held against",
            mend="give an entry's folder, or runs and --baseline RUN…",
        )
    return judge(scores.of_runs(paths, baseline, over), ladder or ())


def judge(sides: Sides, ladder: Sequence[Path] = ()) -> Judgement:
    """ladder: runs of the baseline at other compute. Raises UserError where they cannot be used."""
    contender, baseline = sides.contender, sides.baseline
    notices = [*sides.notices, *_head_starts(sides)]
    if not contender.scores or not baseline.scores:
        verdict = _verdict(sides, None, math.nan)
        sentence = f"{_opening(sides, verdict)}: {'; '.join(_reasons(sides))}"
        return Judgement(
            contender.name,
            sides,
            False,
            None,
            None,
            math.nan,
            None,
            None,
            verdict,
            sentence,
            notices=tuple(notices),
        )
    is_paired = sides.is_paired
    compare = paired if is_paired else welch
    per_byte = compare(_normalised_losses(contender), _normalised_losses(baseline))
    per_token = None
    if sides.one_tokenizer:
        per_token = compare(_losses(contender), _losses(baseline))
    margin = math.log1p(MARGIN) * _tokens_per_byte(baseline)
    worth, doubt = worth_of(sides, per_byte, ladder) if ladder else (None, None)
    if doubt:
        notices.append(doubt)
    documents = _over_documents(sides)
    verdict = _verdict(sides, per_byte, margin)
    return Judgement(
        contender.name,
        sides,
        is_paired,
        per_byte,
        per_token,
        margin,
        documents,
        worth,
        verdict,
        _sentence(sides, verdict, is_paired, per_byte, margin, documents),
        notices=tuple(notices),
    )


def _head_starts(sides: Sides) -> Iterator[str]:
    for side in (sides.contender, sides.baseline):
        if side.head_start is not None:
            yield (
                f"{side.name} scores {side.head_start:.4f} nats a token before training, which"
                " drawn weights do not: look at what its first weights are made of"
            )


def _normalised_losses(side: Side) -> list[float]:
    return [score.normalised_loss for score in side.scores]


def _losses(side: Side) -> list[float]:
    return [score.loss for score in side.scores]


def _tokens_per_byte(side: Side) -> float:
    return side.scores[0].text_tokens / side.scores[0].bytes


def _over_documents(sides: Sides) -> DocumentInterval | None:
    both: list[list[DocumentSums]] = []
    for side in (sides.contender, sides.baseline):
        sums = [score.documents for score in side.scores if score.documents is not None]
        if len(sums) < len(side.scores):
            return None
        both.append(sums)
    contender, baseline = both
    return over_documents(contender, baseline)


def _power(sides: Sides, is_paired: bool, difference: float, margin: float) -> Power | None:
    losses = [np.array(_normalised_losses(side)) for side in (sides.contender, sides.baseline)]
    if min(map(len, losses)) < 2:
        return None
    if is_paired:
        deviation = float(np.std(losses[0] - losses[1], ddof=1))
    else:
        deviation = math.sqrt(np.mean([np.var(values, ddof=1) for values in losses]))
    tokens_per_byte = _tokens_per_byte(sides.baseline)
    counts = sorted({len(sides.contender.scores), *PLANNED_SEEDS})
    resolved = {
        count: math.expm1(resolvable(deviation, count, is_paired) / tokens_per_byte)
        for count in counts
    }
    needed = seeds_needed(difference, deviation, is_paired) if difference else None
    for_equivalence = seeds_for_equivalence(margin, deviation, is_paired)
    return Power(deviation, resolved, needed, for_equivalence)


def _verdict(sides: Sides, difference: Difference | None, margin: float) -> str:
    """difference: None where a side has no finished run."""
    if sides.contender.missing or sides.baseline.missing or sides.baseline.diverged:
        return NO_VERDICT
    if difference is None or sides.contender.diverged or _is_lopsided(sides):
        return NOT_SHOWN
    low, high = difference.interval()
    if high < 0:
        return BETTER
    if low > 0:
        return WORSE
    # identical runs among them
    if difference.p_equivalent(margin) < SIGNIFICANT:
        return EQUIVALENT
    return NOT_SHOWN


def _is_lopsided(sides: Sides) -> bool:
    """Whether Welch's test would find differences by chance far more often than it says: with two
    seeds against five or more, in one of ten comparisons (simulated)."""
    counts = sorted([len(sides.contender.scores), len(sides.baseline.scores)])
    return counts[0] == 2 and counts[1] > 3


def _reasons(sides: Sides) -> list[str]:
    """What became of declared seeds that have no score."""
    reasons = []
    for side in (sides.contender, sides.baseline):
        for seeds, state in ((side.missing, "not finished"), (side.diverged, "diverged")):
            if seeds:
                noun = "seed" if len(seeds) == 1 else "seeds"
                reasons.append(f"{side.name}: {noun} {', '.join(map(str, seeds))} {state}")
    return reasons


def _sentence(
    sides: Sides,
    verdict: str,
    is_paired: bool,
    per_byte: Difference,
    margin: float,
    documents: DocumentInterval | None,
) -> str:
    contender, baseline = sides.contender, sides.baseline
    opening = _opening(sides, verdict)
    reasons = _reasons(sides)
    if reasons:
        return f"{opening}: {'; '.join(reasons)}"
    measured = f"{opening} at equal {sides.over}: {in_nats(per_byte)} a byte"
    how = "paired by seed" if is_paired else "Welch"
    counts = f"{len(contender.scores)} seeds against {len(baseline.scores)}, {how}"
    if not math.isfinite(per_byte.error):
        return f"{measured}; one seed a side cannot tell how sure that is"
    if _is_lopsided(sides):
        return f"{measured}; {counts}: give the side of two as many as the other"
    sentence = f"{measured} ({counts}, p = {per_byte.p:.2g})"
    if verdict in (BETTER, WORSE) and per_byte.p_equivalent(margin) < SIGNIFICANT:
        sentence += f", by less than {MARGIN:.1%} of token perplexity"
    if verdict in (BETTER, WORSE) and documents is not None and not _is_sure(documents, verdict):
        sentence += "; but this text is too little to say so of other text"
    return sentence


def _opening(sides: Sides, verdict: str) -> str:
    contender, baseline = sides.contender.name, sides.baseline.name
    openings = {
        BETTER: f"{contender} is better than {baseline}",
        WORSE: f"{contender} is worse than {baseline}",
        EQUIVALENT: f"{contender} is equivalent to {baseline}",
        NOT_SHOWN: f"{contender} is not shown to be better or worse than {baseline}",
        NO_VERDICT: f"{NO_VERDICT} on {contender}",
    }
    return openings[verdict]


def _is_sure(documents: DocumentInterval, verdict: str) -> bool:
    """Whether resampled documents say the same."""
    return documents.high < 0 if verdict == BETTER else documents.low > 0


def in_nats(difference: Difference) -> str:
    words = f"{difference.value:+.5f} nats"
    if not math.isfinite(difference.error):
        return words
    low, high = difference.interval()
    return f"{words} (95%: {low:+.5f} to {high:+.5f})"


# ---- As JSON


def as_dict(judgement: Judgement) -> dict[str, Any]:
    """Plain values; numbers that are none, such as of one seed, are None."""
    sides = judgement.sides
    per_byte = judgement.per_byte
    content = {
        "verdict": judgement.verdict,
        "sentence": judgement.sentence,
        "claim": judgement.claim,
        "over": sides.over,
        "measured_on": dict(sides.measured_on),
        "contender": _side_as_dict(sides.contender),
        "baseline": _side_as_dict(sides.baseline),
        "notices": list(judgement.notices),
        "paired": judgement.is_paired,
        "nats_per_byte": _difference_as_dict(per_byte),
        "nats_per_token": _difference_as_dict(judgement.per_token),
        "equivalence": None,
        "power": None,
        "documents": None if judgement.documents is None else asdict(judgement.documents),
        "worth": None if judgement.worth is None else judgement.worth.as_dict(),
    }
    if per_byte is not None:
        p = per_byte.p_equivalent(judgement.margin)
        content["equivalence"] = {"margin": MARGIN, "in_nats_per_byte": judgement.margin, "p": p}
    if judgement.power is not None:
        power = judgement.power
        resolved = {str(count): share for count, share in power.resolved.items()}
        content["power"] = {
            "deviation": power.deviation,
            "resolved": resolved,
            "needed": power.needed,
            "for_equivalence": power.for_equivalence,
        }
    return finite(content)


def as_json(judgement: Judgement) -> str:
    return json.dumps(as_dict(judgement), indent=1, allow_nan=False) + "\n"


def _side_as_dict(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "steps": side.steps,
        "compute": dict(side.compute),
        "missing": list(side.missing),
        "diverged": list(side.diverged),
        "seeds": [_score_as_dict(score) for score in side.scores],
    }


def _score_as_dict(score: SeedScore) -> dict[str, Any]:
    return {
        "run": score.run,
        "seed": score.seed,
        "nats": score.nats,
        "tokens": score.tokens,
        "text_nats": score.text_nats,
        "text_tokens": score.text_tokens,
        "bytes": score.bytes,
        "loss": score.loss,
        "normalised_loss": score.normalised_loss,
        "normalised_ppl": math.exp(score.normalised_loss),
    }


def _difference_as_dict(difference: Difference | None) -> dict[str, float] | None:
    if difference is None:
        return None
    low, high = difference.interval()
    return {
        "difference": difference.value,
        "low": low,
        "high": high,
        "standard_error": difference.error,
        "freedom": difference.freedom,
        "p": difference.p,
    }
