"""Is the text enough: the difference between two sides, resampled over the split's documents.

Seeds tell how a method's runs scatter; this tells how the difference between the models at hand
scatters with the text. Documents are drawn with replacement, each for both sides together, so that
what makes a document hard for both falls out; the difference is a ratio of sums over the documents
drawn, text_nats over bytes. (Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Koehn,
EMNLP 2004, for texts.)

The interval is of percentiles: it needs no standard error of a ratio, is not symmetric where the
documents are not, and is the same whether nats or bits are divided by bytes. With few documents
percentiles are too narrow, since documents that are drawn scatter about their own mean; they are
taken farther out, as far as Student's t with count - 1 degrees of freedom exceeds the normal
(Hesterberg, The American Statistician 69, 2015: the expanded percentile interval). On simulated
documents of unequal lengths 8, 20 and 60 of them hold the truth in 94, 92 and 95% of intervals.

Of more than MOST_UNITS documents, as many groups are drawn instead, each of documents from all over
the split: sums of independent documents are as independent, and the time stays within seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from gpt.errors import UserError
from gpt.results.document_sums import DocumentSums
from gpt.results.intervals import LEVEL

RESAMPLES = 10_000
MOST_UNITS = 10_000  # that are drawn from
DRAWS_AT_ONCE = 2**18  # held in memory


@dataclass(frozen=True)
class DocumentInterval:
    """The contender's nats per byte minus the baseline's, and its 95% interval over documents."""

    value: float
    low: float  # NaN, as high, where there is one document alone, or a loss that is no number
    high: float
    documents: int  # that hold text
    better: float  # share of them where the contender is; one where both are equal counts half


def over_documents(
    contender: Sequence[DocumentSums],
    baseline: Sequence[DocumentSums],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DocumentInterval:
    """Of both sides' seeds, whose nats are averaged for each document. The same arguments give the
    same interval. Raises UserError where not all sums are of the same documents."""
    first = contender[0]
    for side in (contender, baseline):
        for sums in side:
            _refuse_other_documents(first, sums)
    has_text = first.bytes > 0
    differences = (_mean_nats(contender) - _mean_nats(baseline))[has_text]
    sizes = first.bytes[has_text].astype(np.float64)
    count = len(sizes)
    if count == 0:
        return DocumentInterval(math.nan, math.nan, math.nan, 0, math.nan)
    value = float(differences.sum() / sizes.sum())
    better = float(np.mean(differences < 0) + np.mean(differences == 0) / 2)
    low = high = math.nan
    if count > 1 and math.isfinite(value):
        low, high = _interval(differences, sizes, resamples, seed)
    return DocumentInterval(value, low, high, count, better)


def _refuse_other_documents(first: DocumentSums, other: DocumentSums) -> None:
    mend = "evaluate all runs with --per_document on the same split of the same dataset"
    if len(first.hashes) != len(other.hashes):
        raise UserError(
            "sums of different documents cannot be compared:"
            f" {len(first.hashes):,} in one evaluation and {len(other.hashes):,} in another",
            mend=mend,
        )
    for place, (own, others) in enumerate(zip(first.hashes, other.hashes, strict=True)):
        if own != others:
            raise UserError(
                "sums of different documents cannot be compared:"
                f" document {place} is {own[:12]}… in one evaluation and {others[:12]}… in another",
                mend=mend,
            )
    unequal = np.flatnonzero(first.bytes != other.bytes)
    if len(unequal):
        place = int(unequal[0])
        raise UserError(
            f"document {place} ({first.hashes[place][:12]}…) has {first.bytes[place]:,} bytes in"
            f" one evaluation and {other.bytes[place]:,} in another",
            mend="evaluate all runs again: bytes are those of the text, whatever model scores it",
        )


def _mean_nats(seeds: Sequence[DocumentSums]) -> np.ndarray:
    return np.mean([sums.text_nats for sums in seeds], axis=0)


def _interval(
    differences: np.ndarray, sizes: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    count = min(len(sizes), MOST_UNITS)
    units = np.arange(len(sizes)) % count
    differences = np.bincount(units, differences)
    sizes = np.bincount(units, sizes)
    # Numpy promises the same numbers in all versions from the bit generator alone.
    generator = np.random.PCG64(seed)
    ratios = np.empty(resamples)
    at_once = DRAWS_AT_ONCE // count
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        raw = generator.random_raw(rows * count).reshape(rows, count)
        drawn = ((raw >> 32) * np.uint64(count) >> 32).astype(np.intp)  # 0 … count - 1
        sums = differences.take(drawn).sum(axis=1)
        ratios[begin : begin + rows] = sums / sizes.take(drawn).sum(axis=1)
    farther = math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 + LEVEL) / 2)
    tail = float(ndtr(-farther))
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return float(low), float(high)
