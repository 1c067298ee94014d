"""Packs as a table reads them, made of losses alone."""

from pathlib import Path

from gpt.packs.submission import Submission
from gpt.referee.entry import BASELINE, CONTENDER, TOKENS, Claim, Entry, Tuning
from gpt.referee.judgement import judge
from gpt.referee.scores import SeedScore, Side, Sides

BYTES = 40_000
TEXT_TOKENS = 10_000
END_TOKENS = 50  # ends of documents, which carry no bytes


def score(side, seed, normalised_loss, untrained=None):
    """Of a seed whose ends of documents cost 2 nats each."""
    text_nats = normalised_loss * BYTES
    return SeedScore(
        run=f"{side}-seed{seed}",
        seed=seed,
        nats=text_nats + 2 * END_TOKENS,
        tokens=TEXT_TOKENS + END_TOKENS,
        text_nats=text_nats,
        text_tokens=TEXT_TOKENS,
        bytes=BYTES,
        untrained=untrained,
        documents=None,
    )


def submission(
    name,
    contender,
    baseline,
    path=None,
    author="A. Nonymous",
    class_name="6h",
    compute=409_600.0,
    documents="d" * 64,
    last_n=64,
    identities=("base", None),
    tokenizers=("t" * 64, "t" * 64),
    missing=(),
    weights=None,
    has_weights=True,
    off_class=(),
):
    """contender, baseline: {seed: nats per byte}. identities, tokenizers: of (baseline,
    contender)."""
    amounts = {"hours": None, "flops": compute * 1e6, "tokens": compute}
    sides = []
    for side, names, losses, absent in (
        (CONTENDER, name, contender, missing),
        (BASELINE, "6h", baseline, ()),
    ):
        scores = tuple(score(side, seed, losses[seed]) for seed in sorted(losses))
        sides.append(Side(names, scores, amounts, steps=100, settings={}, missing=tuple(absent)))
    measured_on = {"split": "test", "documents": documents, "bytes": BYTES, "last_n": last_n}
    one_tokenizer = len(set(tokenizers)) == 1
    path = Path(path or name)
    entry = Entry(
        path,
        name,
        author,
        Claim(class_name, "6h", TOKENS, "better"),
        tuple(sorted({*contender, *missing})),
        Tuning((1.0,), 1000),
    )
    return Submission(
        path,
        entry,
        judge(Sides(*sides, TOKENS, one_tokenizer, measured_on)),
        {BASELINE: identities[0], CONTENDER: identities[1] or name},
        {BASELINE: tokenizers[0], CONTENDER: tokenizers[1]},
        weights or {},
        has_weights,
        off_class,
    )
