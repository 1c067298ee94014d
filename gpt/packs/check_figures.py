"""Checks of what a pack's figures amount to: each is told several times over, and must be the
same."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gpt.checkpoint.manifest import PROBE_TOLERANCE
from gpt.config.identity import digest_with_seed
from gpt.errors import UserError
from gpt.packs.evidence import Declared, Evidence, of_each
from gpt.parsing import parse_json
from gpt.quantities import is_number
from gpt.reading import read_text
from gpt.referee import judgement
from gpt.referee.scores import SAME_SUM
from gpt.results.document_sums import FLOATS, DocumentSums
from gpt.wording import plural

# {name of a sum in pack.json and of documents: its name in an evaluation}
SUMS = {
    "nats": "total_loss",
    "tokens": "tokens",
    "text_nats": "text_nats",
    "text_tokens": "text_tokens",
    "bytes": "bytes",
}
# of what follows from the sums by another version's quantiles of t; of equal models a difference
# may be 0 on one machine and 1e-19 on another
SAME_JUDGEMENT = 1e-6
NEXT_TO_NOTHING = 1e-12


def sums_agree(evidence: Evidence, problems: list[str]) -> str:
    """Of each run the sums in pack.json, in its evaluation, of its documents, and those that
    training found itself are the same; its other figures follow from them."""

    owners: dict[tuple[str, float], str] = {}

    def look(run: Declared) -> Iterator[str]:
        evaluation = evidence.evaluation(run.name)
        twin = owners.setdefault((run.side, evaluation["total_loss"]), run.name)
        if twin != run.name:
            yield f"{run.name} and {twin} score the same to the last bit, and have other seeds"
        yield from _off_pack(evidence, run, evaluation)
        yield from _off_documents(evidence, run, evaluation)
        yield from _off_training(evidence, run, evaluation)
        last_n = evidence.options(run.name).get("last_n")
        if evaluation["last_n"] != last_n:
            yield f"{run.name} was evaluated with last_n {evaluation['last_n']}, not {last_n}"

    of_each(evidence.scored, problems, look)
    return f"{plural(len(evidence.scored), 'evaluation')}, all figures by their sums"


def _off_pack(evidence: Evidence, run: Declared, evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Where pack.json tells other figures of a run than its own files do."""
    sealed = evidence.pack.runs.get(run.name)
    if sealed is None:
        return  # `seeds` tells it
    for name, in_evaluation in SUMS.items():
        sealed_sum, actual = sealed.sums.get(name), evaluation[in_evaluation]
        if sealed_sum != actual:
            yield (
                f"pack.json: runs.{run.name}.sums.{name} is {sealed_sum}, and its evaluation has"
                f" {actual}"
            )
    curve = digest_with_seed(evidence.config(run.name))
    facts: dict[str, tuple[Any, Any]] = {
        "step": (sealed.step, evaluation["step"]),
        "documents": (sealed.documents, evaluation.get("documents")),
        "curve": (sealed.curve, curve),
    }
    for name, (fact, in_files) in facts.items():
        if fact != in_files:
            yield f"pack.json: runs.{run.name}.{name} is {fact}, and its files have {in_files}"


def _off_documents(
    evidence: Evidence, run: Declared, evaluation: Mapping[str, Any]
) -> Iterator[str]:
    """Where the sums over documents are not the evaluation's."""
    totals = evidence.documents(run.name).totals()
    for name, in_evaluation in SUMS.items():
        tolerance = SAME_SUM if name in FLOATS else 0.0
        if not math.isclose(totals[name], evaluation[in_evaluation], rel_tol=tolerance):
            yield (
                f"{run.name}: the {name} of its documents are {totals[name]}, and its evaluation"
                f" has {evaluation[in_evaluation]}"
            )


def _off_training(
    evidence: Evidence, run: Declared, evaluation: Mapping[str, Any]
) -> Iterator[str]:
    """Where training itself has found other figures with the same weights: as far as other batches
    round otherwise, in the run's precision."""
    final = evidence.run(run.name).whole()
    if final is None:
        return  # `metrics` tells it where there should be one
    precision = evidence.config(run.name).get("precision", "fp32")
    for name in SUMS.values():
        of_training, actual = final.get(name), evaluation[name]
        is_count = isinstance(actual, int)
        tolerance = 0.0 if is_count else PROBE_TOLERANCE[precision]
        if of_training is None or not math.isclose(of_training, actual, rel_tol=tolerance):
            within = "" if is_count else f" (equal would be within {tolerance:g} in {precision})"
            yield (
                f"{run.name}: {name} is {actual} in its evaluation, and training found"
                f" {of_training} with the same weights{within}"
            )


def same_documents(first: DocumentSums, second: DocumentSums) -> str | None:
    """In what the documents of two evaluations differ, beside their nats."""
    if first.hashes != second.hashes:
        return "other documents"
    for name in ("tokens", "text_tokens", "bytes"):
        if getattr(first, name).tolist() != getattr(second, name).tolist():
            return f"other {name} of documents"
    return None


def judgement_follows(evidence: Evidence, problems: list[str]) -> str:
    """The judgement, made anew from the sums, is the one that the pack tells."""
    recomputed = judgement.of_paths([evidence.path])
    content = judgement.as_dict(recomputed)
    file = evidence.entry.judgement
    try:
        in_file = parse_json(read_text(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    for place, claimed in ((str(file), in_file), ("pack.json: judgement", evidence.pack.judgement)):
        difference = contradiction_of(claimed, content)
        if difference:
            problems.append(f"{place}{difference}")
    return recomputed.sentence


def contradiction_of(claimed: Any, recomputed: Any, path: str = "") -> str | None:
    """The first value of a judgement, as plain values, that is not what the sums make: its path,
    and both; None where all are."""
    both = claimed, recomputed
    if all(isinstance(value, dict) for value in both):
        names = {**recomputed, **claimed}
        pairs = {f".{name}": (claimed.get(name), recomputed.get(name)) for name in names}
    elif all(isinstance(value, list) for value in both) and len(claimed) == len(recomputed):
        pairs = {f"[{place}]": pair for place, pair in enumerate(zip(claimed, recomputed))}
    elif _is_same(claimed, recomputed):
        return None
    else:
        return f"{path} is {claimed}, and the sums make it {recomputed}"
    for name, pair in pairs.items():
        difference = contradiction_of(*pair, f"{path}{name}")
        if difference:
            return difference
    return None


def _is_same(claimed: Any, recomputed: Any) -> bool:
    if is_number(claimed) and is_number(recomputed):
        return math.isclose(claimed, recomputed, rel_tol=SAME_JUDGEMENT, abs_tol=NEXT_TO_NOTHING)
    return type(claimed) is type(recomputed) and claimed == recomputed
