"""Checks of the weights: that they are the runs', and that they score what is told of them."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt.checkpoint import sources
from gpt.checkpoint.manifest import WEIGHTS
from gpt.compute import hardware
from gpt.contract.second_look import THOROUGH
from gpt.packs import rounding
from gpt.packs.check_figures import SUMS, same_documents
from gpt.packs.evidence import Declared, Evidence, LeftOut, of_each
from gpt.quantities import is_number
from gpt.results import evaluations, scoring
from gpt.results.document_sums import DocumentSums
from gpt.wording import plural

# relative, of sums of nats in fp32: on a machine of the same kind, and on another
SAME_NATS = 1e-6
NEAR_NATS = 1e-5
# of figures that are told beside the sums, relative; and of shares of hits, absolute
SAME_SHARE = 1e-3
SAME_HITS = 1e-3
# windows of a batch beyond the evaluator's usual ones, so that no model is made for their number
MORE_ROWS = 3
# of one document, in which fewer roundings cancel each other
OF_A_DOCUMENT = 100


def are_of_the_runs(evidence: Evidence, problems: list[str]) -> str:
    """The weights are as they were consolidated, from the last checkpoint of their own run; no two
    seeds have the same."""
    owners: dict[str, list[Declared]] = defaultdict(list)

    def look(run: Declared) -> Iterator[str]:
        export = evidence.export(run.name)
        evaluations.require_of_run(evidence.folder(run.name), export)
        if export.step != evidence.last_step(run.name):
            yield (
                f"{export.path} is of step {export.step}, and the run ends at"
                f" {evidence.last_step(run.name)}"
            )
        sha256 = (export.manifest.files.get(WEIGHTS) or {}).get("sha256")
        owners[str(sha256)].append(run)
        sealed = evidence.pack.runs.get(run.name)
        sealed_sha256 = None if sealed is None else str(sealed.weights_sha256)
        if sealed_sha256 not in (None, sha256):
            yield (
                f"pack.json: runs.{run.name}.weights_sha256 is {sealed_sha256[:12]}, and"
                f" {export.path} tells {str(sha256)[:12]}"
            )
        made_from = (export.manifest.made_from or {}).get("sha256")
        if evidence.evaluation(run.name)["run"].get("sha256") != made_from:
            yield f"{run.name} was evaluated with other weights than those in {export.path}"
        if evidence.weights(run.name).is_file():
            export.verify()

    of_each(evidence.scored, problems, look)
    for runs in owners.values():
        seeds = {run.seed for run in runs}
        if len(seeds) > 1:
            names = " and ".join(run.name for run in runs)
            problems.append(f"{names} have the same weights, and other seeds")
    _require_some(evidence, problems)
    return f"{plural(len(owners), 'file')} of weights, each from its run's last checkpoint"


def _require_some(evidence: Evidence, problems: list[str]) -> None:
    """Raise LeftOut where a pack came without weights, and is right in all else."""
    missing = [run for run in evidence.scored if not evidence.weights(run.name).is_file()]
    if missing and not problems:
        raise LeftOut(f"{missing[0].name} came without its weights: its sha256 alone is known")


def give_the_kept_loss(evidence: Evidence, problems: list[str]) -> str:
    """The weights give the loss on the run's probe batch that they gave when training saved
    them."""
    runs, hindrance = _computable(evidence)

    def look(run: Declared) -> Iterator[str]:
        export = evidence.export(run.name)
        if not export.manifest.probe.tokens:
            yield f"{export.path} keeps no probe batch, which a run's weights have"
        _source(evidence, run).load()

    of_each(runs, problems, look)
    words = f"{plural(len(runs), 'model')}, each with the loss that training kept"
    return _unless_hindered(words, hindrance)


def score_the_same(evidence: Evidence, problems: list[str]) -> str:
    """The weights, scored again on the whole split, have the sums that the pack tells, and so has
    every document."""
    runs, hindrance = _computable(evidence)
    widest = SAME_NATS

    def look(run: Declared) -> Iterator[str]:
        nonlocal widest
        tolerance = NEAR_NATS if rounding.differences(evidence.run(run.name)) else SAME_NATS
        widest = max(widest, tolerance)
        yield from _scored_otherwise(evidence, run, tolerance)

    of_each(runs, problems, look)
    words = f"{plural(len(runs), 'model')} scored again: nats within {widest:g}"
    return _unless_hindered(words, hindrance)


def _computable(evidence: Evidence) -> tuple[list[Declared], LeftOut | None]:
    """(runs whose weights are here and may be computed with, why the others may not). Raises
    LeftOut where there is none."""
    runs = []
    hindrance = None
    for run in evidence.scored:
        try:
            if not evidence.weights(run.name).is_file():
                raise LeftOut(f"{run.name} came without its weights")
            evidence.require_trust(run.name)
            runs.append(run)
        except LeftOut as lack:
            hindrance = lack
    if hindrance is not None and not runs:
        raise hindrance
    return runs, hindrance


def _unless_hindered(words: str, hindrance: LeftOut | None) -> str:
    """What is right; raises LeftOut with it where some could not be looked at."""
    if hindrance is not None:
        raise LeftOut(f"{words}; not all: {hindrance}")
    return words


def _source(evidence: Evidence, run: Declared) -> sources.Source:
    # of other code that computed the weights `trainer` tells
    return sources.of_file(
        evidence.weights(run.name), None, lambda sentence: None, evidence.trusted
    )


def _scored_otherwise(evidence: Evidence, run: Declared, tolerance: float) -> Iterator[str]:
    split = evidence.options(run.name)["eval_data_split"]
    target = scoring.of_split(evidence.dataset(run.name), split, per_document=True)
    source = _source(evidence, run)
    facts = {"checkpoint": source.name, "step": source.step}
    device = hardware.usable_device(None)
    model = source.load().to(device)
    seq_len, last_n = scoring.window_of(source)
    rows = scoring.BATCH_TOKENS // seq_len + MORE_ROWS
    window = seq_len, last_n
    scored = scoring.evaluate(model, target, facts, window, device, rows, THOROUGH)
    kept = evidence.evaluation(run.name)
    for name in SUMS.values():
        within = 0.0 if isinstance(kept[name], int) else tolerance
        if not math.isclose(scored.result[name], kept[name], rel_tol=within):
            yield (
                f"{run.name}: {name} is {kept[name]} in its evaluation, and the weights score"
                f" {scored.result[name]} (equal would be within {within:g})"
            )
    yield from _shares_otherwise(run, kept, scored.result)
    assert scored.documents is not None, "they were asked for"
    yield from _documents_otherwise(evidence, run, scored.documents, OF_A_DOCUMENT * tolerance)


def _shares_otherwise(
    run: Declared, kept: Mapping[str, Any], scored: Mapping[str, Any]
) -> Iterator[str]:
    """Figures that follow from none of the sums: hits, and those of the seed project."""
    blocks = (("", kept, scored), ("languini.", kept.get("languini"), scored["languini"]))
    for place, block, figures in blocks:
        for name in figures if place else ("top1", "top10"):
            value = block.get(name) if isinstance(block, dict) else None
            # a rank is a matter of rounding where logits are all but the same
            allowed = {"abs_tol": SAME_HITS} if name in ("top1", "top10") else {}
            if not is_number(value) or not math.isclose(
                value, figures[name], rel_tol=SAME_SHARE, **allowed
            ):
                yield (
                    f"{run.name}: {place}{name} is {value} in its evaluation, and the weights make"
                    f" it {figures[name]}"
                )


def _documents_otherwise(
    evidence: Evidence, run: Declared, scored: DocumentSums, tolerance: float
) -> Iterator[str]:
    kept = evidence.documents(run.name)
    other = same_documents(kept, scored)
    if other:
        yield f"{run.name}: its sums by document are of {other} than the split's"
        return
    wrong = np.flatnonzero(~np.isclose(kept.nats, scored.nats, rtol=tolerance, atol=0.0))
    if len(wrong):
        first = int(wrong[0])
        yield (
            f"{run.name}: document {first + 1} has {kept.nats[first]} nats in its evaluation, and"
            f" the weights score {scored.nats[first]} (equal would be within {tolerance:g})"
        )
