"""The final scores of a contender's and a baseline's runs: the sums of each seed's evaluation.

Of an entry's runs it is the evaluation of the whole split that was made of their exported weights
(eval.py --join), and nothing else counts. Of other runs, too, where all of them have one; else it
is what compare.py ranks by.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gpt.checkpoint.manifest import PROBE_TOLERANCE
from gpt.config.identity import differing
from gpt.errors import UserError
from gpt.metrics import events
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run, read_runs
from gpt.quantities import is_number
from gpt.referee.entry import BASELINE, CONTENDER, FLOPS, HOURS, SIDES, TOKENS, Entry
from gpt.referee.tuning import has_diverged
from gpt.results import document_sums, evaluations
from gpt.results.document_sums import DocumentSums
from gpt.results.scores import WHOLE, final_scores, has_one_tokenizer, incomparable, split_of

# claim.over -> what gpt.metrics.run calls it
AXIS_OF = {HOURS: "reference_hours", FLOPS: "flops", TOKENS: "tokens"}
WORDS_OF = {HOURS: "hours of the reference", FLOPS: "FLOPs", TOKENS: "tokens"}
SHOWN = 5  # of the settings in which runs differ
# relative difference of compute up to which it is equal; a step may be more
EQUAL = 0.02
# of log(vocabulary), above which a loss before training tells of no knowledge
KNOWS_NOTHING = 0.95
# relative, of sums that were added up in another order
SAME_SUM = 1e-9


@dataclass(frozen=True)
class SeedScore:
    """What one run's last weights score on the split. nats: over all tokens. text_nats: over the
    text_tokens that carry bytes."""

    run: str  # its folder's name
    seed: int
    nats: float
    tokens: int
    text_nats: float
    text_tokens: int
    bytes: int
    # nats of its first evaluation, before training; None where it made none
    untrained: tuple[float, float] | None
    documents: DocumentSums | None  # of each document, where they were kept

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def normalised_loss(self) -> float:
        """Nats per byte."""
        return self.text_nats / self.bytes


@dataclass(frozen=True)
class Side:
    """The seeds of one side that are finished, and what became of the others."""

    name: str  # what sentences call it
    scores: tuple[SeedScore, ...]  # by rising seed
    compute: Mapping[str, float | None]  # {HOURS, FLOPS, TOKENS: what each of its runs takes}
    steps: int  # of each of its runs; 0 where there is none
    settings: Mapping[str, Any]  # what its runs have in common; nothing where there is none
    # what its runs scored before training, where that is less than drawn weights know
    head_start: float | None = None  # nats per token
    missing: tuple[int, ...] = ()  # declared seeds that are not finished, or not evaluated
    diverged: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(score.seed for score in self.scores)


@dataclass(frozen=True)
class Sides:
    """A contender and its baseline, scored alike at equal compute."""

    contender: Side
    baseline: Side
    over: str
    one_tokenizer: bool  # whether figures per token can be compared
    measured_on: Mapping[str, Any]  # the split and how it was scored
    notices: tuple[str, ...] = ()

    @property
    def is_paired(self) -> bool:
        """Whether both sides began with the same weights under every seed, by their untrained
        evaluations: equal to the last bit, and each seed's its own, as it is not where a head
        begins with zeros and every token costs log(vocabulary)."""
        if self.contender.seeds != self.baseline.seeds:
            return False
        first = [score.untrained for score in self.baseline.scores]
        if None in first or len(set(first)) < len(first):
            return False
        return first == [score.untrained for score in self.contender.scores]


def of_entry(entry: Entry) -> Sides:
    """Of an entry's folder, or a pack's. Raises UserError where an evaluation contradicts itself,
    where seeds of one side differ in more, or where the sides were not scored alike."""
    scored: dict[str, list[_Scored]] = {}
    missing: dict[str, list[int]] = {side: [] for side in SIDES}
    diverged: dict[str, list[int]] = {side: [] for side in SIDES}
    for side in SIDES:
        scored[side] = []
        for seed in sorted(entry.seeds):
            folder = entry.run_folder(side, seed)
            run = read_run(folder) if folder.is_dir() else None
            evaluation = None if run is None else _joined(run)
            if run is not None and has_diverged(run):
                diverged[side].append(seed)
            elif run is None or evaluation is None:
                missing[side].append(seed)
            else:
                run.name = folder.name
                _require_seed(run, seed)
                _require_own_scoring(run, evaluation)
                scored[side].append(_Scored(run, evaluation, True))
    names = {CONTENDER: entry.name, BASELINE: entry.claim.baseline}
    contender, baseline = (
        _side(names[side], scored[side], missing[side], diverged[side])
        for side in (CONTENDER, BASELINE)
    )
    everything = [*scored[BASELINE], *scored[CONTENDER]]
    return _together(contender, baseline, everything, entry.claim.over)


def of_runs(contender: Sequence[Path], baseline: Sequence[Path], over: str | None) -> Sides:
    """Of folders of runs, or folders that hold runs. over: one of OVER; None: hours where all runs
    tell them, else FLOPs. Raises UserError where a run is not finished, where the runs of one side
    are no seeds of each other, or where the sides were not scored alike at equal compute."""
    # read together, so that their names tell them apart
    both = read_runs([*contender, *baseline])
    of_baseline = {run.path.resolve() for run in read_runs(baseline)}
    for run in read_runs(contender):
        if run.path.resolve() in of_baseline:
            raise UserError(
                f"{run.path} is on both sides", mend="name it as the contender's or the baseline's"
            )
    for run in both:
        if not run.finished and not has_diverged(run):
            raise UserError(f"{run.name} is {run.state}", mend="judge finished runs")
    finished = [run for run in both if not has_diverged(run)]
    figures, is_joined, notices = _figures_of(finished)
    scored: dict[str, list[_Scored]] = {CONTENDER: [], BASELINE: []}
    diverged: dict[str, list[int]] = {CONTENDER: [], BASELINE: []}
    for run in both:
        side = BASELINE if run.path.resolve() in of_baseline else CONTENDER
        if has_diverged(run):
            diverged[side].append(run.options["seed"])
        else:
            scored[side].append(_Scored(run, figures[run.name], is_joined))
    if over is None:
        hours = [run.planned(AXIS_OF[HOURS]) for run in finished]
        over = FLOPS if None in hours else HOURS
    sides = [
        _side(_common_name(scored[side]), scored[side], [], diverged[side])
        for side in (CONTENDER, BASELINE)
    ]
    everything = [*scored[BASELINE], *scored[CONTENDER]]
    return replace(_together(sides[0], sides[1], everything, over), notices=tuple(notices))


def _figures_of(runs: Sequence[Run]) -> tuple[Mapping[str, Mapping[str, Any]], bool, list[str]]:
    """({name of a run: its final evaluation}, whether these are of exported weights, sentences on
    them). Raises UserError where the runs do not measure the same."""
    joined = {run.name: _joined(run) for run in runs}
    evaluations_of_all = {name: figures for name, figures in joined.items() if figures is not None}
    if len(evaluations_of_all) == len(runs):
        return evaluations_of_all, True, []
    notices: list[str] = []
    scores = final_scores(runs, notices)
    if not scores.whole:
        notices.append(f"judged by the part of the split that training scored: {WHOLE}")
    return scores.figures, False, notices


class _Scored(NamedTuple):
    """A run, and its final evaluation. is_joined: whether that is of its exported weights."""

    run: Run
    figures: Mapping[str, Any]
    is_joined: bool


def _joined(run: Run) -> dict[str, Any] | None:
    """The evaluation of a run's exported weights after its last step; None where there is none."""
    split = str(run.options.get("eval_data_split"))
    return evaluations.read(run.path, run.config, split, run.options["max_train_steps"])


def _require_seed(run: Run, seed: int) -> None:
    actual = run.options.get("seed")
    if actual != seed:
        raise UserError(
            f"{run.path} is of the seed {actual}, and its name says {seed}",
            mend="bring back the run of that seed, or train it",
        )


def _require_own_scoring(run: Run, evaluation: Mapping[str, Any]) -> None:
    """Raise UserError where the evaluation of a run's export is not scored as the run declares, or
    is far from what training found of the same weights."""
    last_n = run.options.get("last_n")
    if evaluation["last_n"] != last_n:
        raise UserError(
            f"{run.path} was evaluated with last_n {evaluation['last_n']}, and is scored with"
            f" {last_n}",
            mend="evaluate its export again with eval.py --join, without --last_n",
        )
    whole = run.whole()
    if whole is None or not is_number(whole.get("loss")):
        return
    tolerance = PROBE_TOLERANCE[str(run.config.get("precision"))]
    if not math.isclose(whole["loss"], evaluation["loss"], rel_tol=tolerance):
        raise UserError(
            f"{run.path}: its evaluation says {evaluation['loss']:.6f} nats a token, and training"
            f" found {whole['loss']:.6f} with the same weights",
            mend="export the run's last checkpoint, and evaluate that",
        )


def _common_name(scored: Sequence[_Scored]) -> str:
    """What runs that are seeds of each other are called: their folders' name without the seed."""
    if not scored:
        return "none"
    name = scored[0].run.path.name
    return re.sub(r"[-_.]?seed[-_]?\d+$", "", name) or name


def _side(
    name: str, scored: Sequence[_Scored], missing: Sequence[int], diverged: Sequence[int]
) -> Side:
    """Raises UserError where runs are no seeds of each other."""
    for first, second in zip(scored, scored[1:]):
        paths = differing([first.run.identity, second.run.identity])
        if paths:
            raise UserError(
                f"{first.run.name} and {second.run.name} differ in more than their seeds"
                f" ({', '.join(paths[:SHOWN])})",
                mend="judge one method against one baseline",
            )
    scores = sorted(map(_score, scored), key=lambda score: score.seed)
    for score, other in itertools.combinations(scores, 2):
        if score.seed == other.seed:
            raise UserError(
                f"{score.run} and {other.run} are of one seed, {score.seed}",
                mend="leave one out: the same again is no other seed",
            )
        if (score.nats, score.text_nats) == (other.nats, other.text_nats):
            raise UserError(
                f"{score.run} and {other.run} have the same sums to the last bit: one run under"
                " two seeds",
                mend="train each seed",
            )
    compute: dict[str, float | None] = dict.fromkeys(AXIS_OF)
    steps = 0
    settings: dict[str, Any] = {}
    if scored:
        run = scored[0].run
        settings = run.identity
        steps = run.options["max_train_steps"]
        compute = {over: run.planned(axis) for over, axis in AXIS_OF.items()}
    return Side(
        name,
        tuple(scores),
        compute,
        steps,
        settings,
        head_start=_head_start([own.run for own in scored]),
        missing=tuple(missing),
        diverged=tuple(diverged),
    )


def _score(scored: _Scored) -> SeedScore:
    run, figures, is_joined = scored
    for name in ("total_loss", "text_nats"):
        if not is_number(figures.get(name)):
            raise UserError(f"the evaluation of {run.name} has no {name}", mend="evaluate it again")
    return SeedScore(
        run=run.path.name,
        seed=run.options["seed"],
        nats=figures["total_loss"],
        tokens=figures["tokens"],
        text_nats=figures["text_nats"],
        text_tokens=figures["text_tokens"],
        bytes=figures["bytes"],
        untrained=_untrained(run),
        documents=_documents(run, figures) if is_joined else None,
    )


def _head_start(runs: Sequence[Run]) -> float | None:
    """The lowest loss before training, where it is well below log(vocabulary), which a model pays
    for a token that knows nothing."""
    losses = []
    for run in runs:
        curve = run.curve(events.EVAL, run.options.get("eval_data_split"))
        loss = curve[0].get("loss") if curve and curve[0]["step"] == 0 else None
        if is_number(loss) and loss < KNOWS_NOTHING * math.log(run.model.vocab_size):
            losses.append(loss)
    return min(losses, default=None)


def _untrained(run: Run) -> tuple[float, float] | None:
    """Nats of the evaluation before the first step: of all tokens, of those that carry bytes."""
    curve = run.curve(events.EVAL, run.options.get("eval_data_split"))
    if not curve or curve[0]["step"] != 0:
        return None
    nats = curve[0].get("total_loss"), curve[0].get("text_nats")
    return None if None in nats else nats


def _documents(run: Run, figures: Mapping[str, Any]) -> DocumentSums | None:
    """The sums of each document, which must add up to those of the evaluation beside them. Raises
    UserError."""
    split = str(run.options.get("eval_data_split"))
    path = documents_file(run.path, split, run.options["max_train_steps"])
    if not path.is_file():
        return None
    sums = document_sums.read(path)
    for name, of_documents in sums.totals().items():
        whole = figures["total_loss" if name == "nats" else name]
        if not math.isclose(of_documents, whole, rel_tol=SAME_SUM):
            raise UserError(
                f"{path}: {name} of its documents are {of_documents:.10g} together, and the"
                f" evaluation beside it says {whole:.10g}",
                mend="evaluate the run's export again with eval.py --join and --per_document",
            )
    return sums


def documents_file(run_dir: Path, split: str, step: int) -> Path:
    """Where a run keeps the sums of each document."""
    return evaluations.file_of(run_dir, split, step).with_suffix(".documents.jsonl")


def _together(contender: Side, baseline: Side, scored: Sequence[_Scored], over: str) -> Sides:
    """Raises UserError where the two were not scored alike, or not trained with equal compute."""
    runs = [run for run, _, _ in scored]
    figures = {run.name: figures for run, figures, _ in scored}
    reason = incomparable(runs, figures)
    if reason:
        raise UserError(f"the sides cannot be compared: {reason}")
    if contender.scores and baseline.scores:
        _require_equal(contender, baseline, over)
    measured_on: dict[str, Any] = {}
    if scored:
        run, facts, _ = scored[0]
        measured_on = {
            "split": run.options.get("eval_data_split"),
            "documents": split_of(run).get("documents"),
            "bytes": facts["bytes"],
            "last_n": facts.get("last_n", run.options.get("last_n")),
        }
    return Sides(contender, baseline, over, has_one_tokenizer(runs, []), measured_on)


def _require_equal(contender: Side, baseline: Side, over: str) -> None:
    """Raise UserError unless both took equal compute, as far as whole steps allow."""
    amounts = []
    for side in (contender, baseline):
        amount = side.compute[over]
        if amount is None:
            raise UserError(
                f"the runs of {side.name} do not tell their {over}",
                mend="compare over flops or tokens",
            )
        amounts.append(amount)
    tolerance = max(EQUAL, 1 / min(contender.steps, baseline.steps))
    if abs(amounts[0] - amounts[1]) > tolerance * max(amounts):
        raise UserError(
            f"{contender.name} and {baseline.name} were not trained with equal compute:"
            f" {amounts[0]:.5g} and {amounts[1]:.5g} {WORDS_OF[over]}",
            mend="train both for as much",
        )
