"""Sides of a judgement with losses that are known in advance."""

from gpt.referee.scores import SeedScore, Side, Sides

TOKENS = 100_000
TOKENS_PER_BYTE = 0.25
MEASURED_ON = {"split": "test", "documents": "2" * 64, "bytes": 400_000, "last_n": 128}


def score(seed, loss, untrained=None, documents=None, run="run"):
    """loss: nats per token; every token carries bytes."""
    return SeedScore(
        run=f"{run}-seed{seed}",
        seed=seed,
        nats=loss * TOKENS,
        tokens=TOKENS,
        text_nats=loss * TOKENS,
        text_tokens=TOKENS,
        bytes=round(TOKENS / TOKENS_PER_BYTE),
        untrained=untrained,
        documents=documents,
    )


def side(name, losses, untrained=None, documents=None, **more):
    """losses: of the seeds 0, 1, …, in nats per token. untrained, documents: of each seed."""
    count = len(losses)
    scores = [
        score(seed, loss, first, sums, name)
        for seed, loss, first, sums in zip(
            range(count), losses, untrained or [None] * count, documents or [None] * count
        )
    ]
    compute = {"hours": 6.0, "flops": 1e18, "tokens": 1e9}
    return Side(name, tuple(scores), compute, 1000, {}, **more)


def sides(contender, baseline, over="hours", one_tokenizer=True):
    return Sides(contender, baseline, over, one_tokenizer, MEASURED_ON)
