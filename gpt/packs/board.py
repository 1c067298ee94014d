"""A table of packs: entries of one class side by side, best first.

Every two rows are held against each other by Welch's test over their seeds, and Holm's correction
(Scand. J. Statist. 6, 1979) keeps the chance that any of the differences in a table is none at 5%.
A rank is one more than the number of rows that are shown to be better, so what cannot be told from
the best stands on rank 1 with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from gpt.errors import UserError
from gpt.packs.submission import Submission, read
from gpt.referee.entry import BASELINE, CONTENDER
from gpt.referee.scores import SeedScore
from gpt.results.intervals import LEVEL, Estimate, holm, mean, welch
from gpt.results.leaderboard import SAME_CLASS
from gpt.results.published import Published, of_class
from gpt.wording import listed

SIGNIFICANT = 1 - LEVEL
# With two seeds against many of another row, Welch's test finds one difference in ten that is none.
FEWEST_SEEDS = 3
SAME_SUM = 1e-6  # relative, up to which two trainings of one seed agree
SHORT = 12  # characters of a hash
SHOWN = 5  # of the settings in which runs differ


@dataclass(frozen=True)
class Row:
    """A contender, or a baseline with the seeds of all packs that hold it."""

    name: str
    author: str
    identity: str  # of its runs, their seeds aside
    tokenizer: str | None
    scores: Mapping[int, SeedScore]  # {seed: its score}
    unscored: tuple[int, ...]  # seeds that were declared and have no score: diverged, or absent
    submissions: tuple[Submission, ...]
    is_baseline: bool = False
    rank: int | None = None  # None where it cannot be ranked

    @property
    def losses(self) -> list[float]:
        """Nats per token, by rising seed."""
        return [self.scores[seed].loss for seed in sorted(self.scores)]

    @property
    def normalised_losses(self) -> list[float]:
        """Nats per byte, by rising seed."""
        return [self.scores[seed].normalised_loss for seed in sorted(self.scores)]

    @property
    def normalised_loss(self) -> Estimate:
        return mean(self.normalised_losses)

    @property
    def can_be_ranked(self) -> bool:
        """Whether there are seeds enough, all that were declared, of weights that anyone can score
        again."""
        has_weights = any(submission.has_weights for submission in self.submissions)
        return has_weights and len(self.scores) >= FEWEST_SEEDS and not self.unscored


@dataclass(frozen=True)
class Table:
    """The rows of a class that were scored on the same text, by rising rank."""

    first: Submission  # which tells what they have in common
    rows: tuple[Row, ...]
    # {places of two ranked rows, the smaller first: Holm's p of their difference}
    p_values: Mapping[tuple[int, int], float]
    published: tuple[Published, ...]

    @property
    def has_one_tokenizer(self) -> bool:
        return len({row.tokenizer for row in self.rows}) == 1


@dataclass(frozen=True)
class Board:
    tables: tuple[Table, ...]
    notices: tuple[str, ...]  # on what was left out, and what looks strange


def of_packs(paths: Sequence[Path]) -> Board:
    """Raises UserError where no pack can be used; those that contradict themselves are left out,
    with a notice."""
    submissions = []
    notices = []
    for path in _distinct(paths):
        try:
            submissions.append(read(path))
        except UserError as problem:
            notices.append(f"left out: {problem}")
    if not submissions:
        raise UserError(f"no pack can be used; {'; '.join(notices)}")
    notices += _copies(submissions)
    notices += _off_class(submissions)
    return of_submissions(submissions, notices)


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Without folders that are named twice."""
    return list({path.resolve(): path for path in paths}.values())


def of_submissions(submissions: Sequence[Submission], notices: Sequence[str] = ()) -> Board:
    """The tables by class name."""
    notices = list(notices)
    tables = [_table(group, notices) for group in _by_class(submissions)]
    return Board(tuple(tables), tuple(dict.fromkeys(notices)))


def _by_class(submissions: Sequence[Submission]) -> list[list[Submission]]:
    """Those at equal compute that were scored alike, by name and rising compute."""
    classes: list[list[Submission]] = []
    for submission in sorted(submissions, key=_order_of_class):
        if classes:
            smallest = classes[-1][0]
            is_equal = submission.compute <= smallest.compute * SAME_CLASS
            if submission.measure == smallest.measure and is_equal:
                classes[-1].append(submission)
                continue
        classes.append([submission])
    return classes


def _order_of_class(submission: Submission) -> tuple:
    return (*map(str, submission.measure), submission.compute, submission.entry.name)


def _table(submissions: Sequence[Submission], notices: list[str]) -> Table:
    rows = _baselines(submissions, notices)
    rows += [_row(submission, CONTENDER) for submission in submissions]
    p_values = _p_values(rows)
    better = [0] * len(rows)
    for (first, second), p in p_values.items():
        if p < SIGNIFICANT:
            values = [rows[place].normalised_loss.value for place in (first, second)]
            better[first if values[0] > values[1] else second] += 1
    ranked = [
        replace(row, rank=1 + better[place] if row.can_be_ranked else None)
        for place, row in enumerate(rows)
    ]
    order = sorted(range(len(ranked)), key=lambda place: _order(ranked[place]))
    place_of = {old: new for new, old in enumerate(order)}
    moved = {}
    for (first, second), p in p_values.items():
        places = sorted((place_of[first], place_of[second]))
        moved[places[0], places[1]] = p
    return Table(
        submissions[0],
        tuple(ranked[place] for place in order),
        moved,
        tuple(_published(submissions)),
    )


def _published(submissions: Sequence[Submission]) -> list[Published]:
    """What was published of the baselines that are those which come with the trainer."""
    names = [pack.entry.claim.baseline for pack in submissions if pack.off_class == ()]
    return [result for name in dict.fromkeys(names) for result in of_class(name)]


def _order(row: Row) -> tuple[float, bool, float]:
    """By rank; those without one come last, and of those, the ones that lack a seed."""
    loss = row.normalised_loss.value if row.scores else math.inf
    return (row.rank or math.inf, bool(row.unscored), loss)


def _row(submission: Submission, side: str) -> Row:
    scores = submission.side(side)
    is_baseline = side == BASELINE
    return Row(
        submission.entry.claim.baseline if is_baseline else submission.entry.name,
        "" if is_baseline else submission.entry.author,
        submission.identities[side],
        submission.tokenizers[side],
        {score.seed: score for score in scores.scores},
        tuple(sorted({*scores.missing, *scores.diverged})),
        (submission,),
        is_baseline,
    )


def _baselines(submissions: Sequence[Submission], notices: list[str]) -> list[Row]:
    """A row for each baseline, with all its seeds. Seeds of packs without weights count only where
    no pack has any; of two scores of one seed the better counts, since a baseline is no worse than
    it was shown to be."""
    rows: dict[str, Row] = {}
    for submission in sorted(submissions, key=lambda pack: not pack.has_weights):
        row = _row(submission, BASELINE)
        known = rows.setdefault(row.identity, row)
        if known is row:
            continue
        notices += _disagreements(known, row)
        submissions_of_row = (*known.submissions, submission)
        if known.submissions[0].has_weights and not submission.has_weights:
            rows[row.identity] = replace(known, submissions=submissions_of_row)
            continue
        scores = {**row.scores, **known.scores}
        for seed in row.scores.keys() & known.scores.keys():
            both = row.scores[seed], known.scores[seed]
            scores[seed] = min(both, key=lambda score: score.text_nats)
        unscored = {*known.unscored, *row.unscored} - scores.keys()
        rows[row.identity] = replace(
            known,
            scores=scores,
            unscored=tuple(sorted(unscored)),
            submissions=submissions_of_row,
        )
    return list(rows.values())


def _disagreements(known: Row, row: Row) -> list[str]:
    """Sentences on seeds of one baseline that score otherwise in another pack."""
    paths = [row.submissions[0].path, known.submissions[0].path]
    sentences = []
    for seed in sorted(known.scores.keys() & row.scores.keys()):
        nats = [rows.scores[seed].text_nats for rows in (row, known)]
        if not math.isclose(*nats, rel_tol=SAME_SUM):
            sentences.append(
                f"the baseline {row.name} with seed {seed} scores {nats[0]:.10g} nats in {paths[0]}"
                f" and {nats[1]:.10g} in {paths[1]}: another device, or one of them is not what it"
                " says"
            )
    return sentences


def _p_values(rows: Sequence[Row]) -> dict[tuple[int, int], float]:
    """{places of two rows: p of no difference}, corrected for their number."""
    ranked = [place for place, row in enumerate(rows) if row.can_be_ranked]
    pairs = list(combinations(ranked, 2))
    single = [
        welch(rows[first].normalised_losses, rows[second].normalised_losses).p
        for first, second in pairs
    ]
    return dict(zip(pairs, map(float, holm(single))))


def _off_class(submissions: Sequence[Submission]) -> list[str]:
    """Sentences on baselines that are other runs than those of their names."""
    return [
        f"{submission.path}: its baseline is not ds_configs/{submission.entry.claim.baseline}.json,"
        f" but another run in {listed(submission.off_class, SHOWN)}"
        for submission in submissions
        if submission.off_class
    ]


def _copies(submissions: Sequence[Submission]) -> list[str]:
    """Sentences on contenders of two packs that have the same weights."""
    owners: dict[str, Path] = {}
    sentences = []
    for submission in submissions:
        for name, weights in submission.contender_weights.items():
            owner = owners.setdefault(weights, submission.path)
            if owner != submission.path:
                sentences.append(f"{submission.path}: {name} has the very weights of {owner}")
    return sentences
