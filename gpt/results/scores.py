"""The final evaluations that runs are ranked by, and whether they measure the same.

The whole split counts, where all runs have scored it: in training (final_eval), or afterwards
(eval.py --join). Else the part counts that training scored. Two runs measure the same where the
texts and the bytes scored are equal; figures per token need one tokenizer, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.metrics.run import Run, values
from gpt.results import evaluations

WHOLE = "score the whole split of each (final_eval, or gpt/eval.py --join)"


@dataclass(frozen=True)
class Scores:
    """Final evaluations that measure the same. Made by `final_scores`."""

    figures: Mapping[str, Mapping[str, Any]]  # {name of a run: its figures}
    whole: bool  # whether they are of the whole split
    one_tokenizer: bool  # whether figures per token can be compared

    def of(self, runs: Sequence[Run], quantity: str) -> np.ndarray:
        """A figure of every run, float64."""
        return values([dict(self.figures[run.name]) for run in runs], quantity)


def whole_split(run: Run) -> tuple[dict | None, str | None]:
    """(figures of the whole split after the run's last step, what is wrong with those that eval.py
    joined to it); either may be None."""
    planned = run.options["max_train_steps"]
    for figures in (run.whole(), run.final()):
        if figures and figures["step"] == planned and is_whole(run, figures):
            return figures, None
    split = run.options.get("eval_data_split")
    try:
        return evaluations.read(run.path, run.config, str(split), planned), None
    except UserError as problem:
        return None, str(problem)


def is_whole(run: Run, figures: Mapping[str, Any]) -> bool:
    """Whether an evaluation scored all tokens of its split, by all that is told of it."""
    told = {figures.get("of_tokens"), split_of(run).get("tokens")} - {None}
    return told == {figures.get("tokens")}


def split_of(run: Run) -> dict[str, Any]:
    """What a run tells of the split that its configuration names; an earlier one tells nothing."""
    scored = (run.config.get("dataset") or {}).get("scored") or {}
    return scored if scored.get("split") == run.options.get("eval_data_split") else {}


def is_scored(run: Run) -> bool:
    """Whether there is any final evaluation."""
    return run.final() is not None or whole_split(run)[0] is not None


def final_scores(runs: Sequence[Run], notices: list[str]) -> Scores:
    """Of finished runs. Raises UserError where they do not measure the same; notices get what was
    joined to a run and cannot be used."""
    whole = {}
    for run in runs:
        figures, problem = whole_split(run)
        if problem:
            notices.append(problem)
        if figures is not None:
            whole[run.name] = figures
    is_of_whole = len(whole) == len(runs)
    figures = whole if is_of_whole else {run.name: run.final() or {} for run in runs}
    reason = incomparable(runs, figures)
    if reason:
        raise UserError(f"these runs cannot be compared: {reason}")
    return Scores(figures, is_of_whole, has_one_tokenizer(runs, notices))


def has_one_tokenizer(runs: Sequence[Run], notices: list[str]) -> bool:
    """Notices get what that means where there are several."""
    if len({_tokenizer(run) for run in runs}) <= 1:
        return True
    notices.append(
        "the runs have different tokenizers: figures per token (the loss) say nothing of"
        " which is better, and a token of context is not as much text for all"
    )
    return False


def joined_scores(runs: Sequence[Run], split: str, notices: list[str]) -> Scores:
    """Of those of the finished runs to which an evaluation of another split is joined; notices name
    the others. Raises UserError where there is none, or where they do not measure the same."""
    figures = {}
    for run in runs:
        planned = run.options["max_train_steps"]
        try:
            evaluation = evaluations.read(run.path, run.config, split, planned)
        except UserError as problem:
            notices.append(f"{run.name} is left out: {problem}")
            continue
        if evaluation is None:
            notices.append(f"{run.name} is left out: no evaluation of {split!r} is joined to it")
        else:
            figures[run.name] = evaluation
    scored = [run for run in runs if run.name in figures]
    if not scored:
        raise UserError(
            f"no run has an evaluation of the split {split!r}",
            mend="make them with `python gpt/eval.py --join RUN`",
        )
    for first, second in zip(scored, scored[1:]):
        both = figures[first.name], figures[second.name]
        texts = [evaluation.get("documents") for evaluation in both]
        difference = _other_measure(first, second, *both)
        if None in texts or texts[0] != texts[1]:
            difference = f"were evaluated on different texts (documents {_short(texts)})"
        if difference:
            raise UserError(
                f"these runs cannot be compared: {first.name} and {second.name} {difference}"
            )
    return Scores(figures, True, has_one_tokenizer(scored, notices))


def incomparable(
    runs: Sequence[Run], figures: Mapping[str, Mapping[str, Any]] | None = None
) -> str | None:
    """Why final evaluations of runs do not measure the same, or None.

    figures: {name of a run: its evaluation}; default those of training.
    """
    if figures is None:
        figures = {run.name: run.final() or {} for run in runs}
    for run in runs:
        if run.fingerprint is None and not split_of(run):
            return f"{run.name} does not tell its dataset's fingerprint"
        if not isinstance(figures[run.name].get("bytes"), int):
            return f"{run.name} does not tell how many bytes its evaluations scored"
    for first, second in zip(runs, runs[1:]):
        difference = _other_text(first, second) or _other_measure(
            first, second, figures[first.name], figures[second.name]
        )
        if difference:
            return f"{first.name} and {second.name} {difference}"
    return None


def _other_text(first: Run, second: Run) -> str | None:
    """In what the held-out texts of two runs differ, as the rest of a sentence about them."""
    texts = [split_of(run).get("documents") for run in (first, second)]
    if None not in texts:
        if texts[0] != texts[1] and any(":" in str(text) for text in texts):
            return (
                "have datasets one of which is of an earlier version and does not tell its texts:"
                " prepare it again, and evaluate with it"
            )
        if texts[0] != texts[1]:
            return f"were evaluated on different texts (documents {_short(texts)})"
        return None
    fingerprints = [run.fingerprint for run in (first, second)]
    if fingerprints[0] != fingerprints[1]:
        return f"were trained on different datasets (fingerprints {_short(fingerprints)})"
    split, other_split = (run.options.get("eval_data_split") for run in (first, second))
    if split != other_split:
        return f"were evaluated on different splits ({split} and {other_split})"
    return None


def held_out_text(run: Run) -> Any:
    """What tells the text that a run is scored on from others."""
    documents = split_of(run).get("documents")
    return documents or (run.fingerprint, run.options.get("eval_data_split"))


def texts_differ(runs: Sequence[Run]) -> list[str]:
    """Sentences on curves of runs that do not measure the same, for a figure that shows them all
    the same."""
    for first, second in zip(runs, runs[1:]):
        difference = _other_text(first, second)
        if difference:
            return [f"{first.name} and {second.name} {difference}: losses do not measure the same"]
    if len({_tokenizer(run) for run in runs}) > 1:
        return ["the runs have different tokenizers: losses per token do not measure the same"]
    return []


def _other_measure(
    first: Run, second: Run, figures: Mapping[str, Any], other_figures: Mapping[str, Any]
) -> str | None:
    """In what two evaluations of one text differ."""
    last_n = figures.get("last_n", first.options.get("last_n"))
    other_last_n = other_figures.get("last_n", second.options.get("last_n"))
    if _tokenizer(first) == _tokenizer(second) and last_n != other_last_n:
        return (
            f"gave the scored tokens different context (last_n {last_n} and {other_last_n}):"
            " evaluate them with the same last_n"
        )
    scored, other_scored = figures["bytes"], other_figures["bytes"]
    if scored != other_scored:
        split = first.options.get("eval_data_split")
        return (
            f"scored different parts of the split {split!r} ({scored:,} and {other_scored:,}"
            f" bytes): {WHOLE}, or evaluate them with the same seq_len, last_n, eval_batch_size and"
            " max_eval_steps"
        )
    return None


def _tokenizer(run: Run) -> str | None:
    return (run.config.get("dataset") or {}).get("tokenizer")


def _short(hashes: Sequence[Any]) -> str:
    return " and ".join(str(value)[:12] for value in hashes)


def how_much(runs: Sequence[Run], scores: Scores) -> str:
    """How much of the split was scored, in words: the whole split, 2,979,411 bytes."""
    run = runs[0]
    figures = scores.figures[run.name]
    bytes_scored = f"{figures['bytes']:,} bytes"
    tokens = figures.get("tokens")
    if scores.whole:
        counted = f"{tokens:,} tokens, " if scores.one_tokenizer else ""
        return f"the whole split, {counted}{bytes_scored}"
    of_tokens = figures.get("of_tokens") or split_of(run).get("tokens")
    if not of_tokens or not isinstance(tokens, int) or not scores.one_tokenizer:
        return bytes_scored
    share = f"{tokens / of_tokens:.1%}"
    return f"the first {tokens:,} of {of_tokens:,} tokens ({share}), {bytes_scored}"
