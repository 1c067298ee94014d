"""The verdict: which words for which numbers, against scipy, closed forms and simulated nulls."""

import dataclasses
import json
import math

import numpy as np
import pytest
from judged import TOKENS_PER_BYTE, side, sides
from scipy import stats

from gpt.referee import judgement as judgements
from gpt.referee.judgement import BETTER, EQUIVALENT, NO_VERDICT, NOT_SHOWN, WORSE, as_json, judge
from gpt.referee.judgement_text import in_words
from gpt.results.document_sums import DocumentSums

# nats a token of the five public seeds of 6h
PUBLISHED = [math.log(ppl) for ppl in (21.930, 21.986, 21.726, 21.995, 21.997)]
SPREAD = [-0.005, 0.0, 0.005]


def around(center, scale=1.0):
    return [center + scale * part for part in SPREAD]


@pytest.mark.parametrize(
    "losses, verdict",
    [
        (around(3.04), BETTER),
        (around(3.12), WORSE),
        (around(3.081), NOT_SHOWN),
        (around(3.0801, 0.01), EQUIVALENT),
    ],
)
def test_the_verdict_follows_the_interval(losses, verdict):
    scale = 0.01 if verdict == EQUIVALENT else 1.0
    result = judge(sides(side("rope", losses), side("6h", around(3.08, scale))))
    assert result.verdict == verdict
    low, high = result.per_byte.interval()
    expected = stats.ttest_ind(losses, around(3.08, scale), equal_var=False)
    interval = expected.confidence_interval()
    assert low == pytest.approx(interval.low * TOKENS_PER_BYTE, rel=1e-9)
    assert high == pytest.approx(interval.high * TOKENS_PER_BYTE, rel=1e-9)
    assert result.per_byte.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert not result.is_paired


def test_the_sentences():
    better = judge(sides(side("rope", around(3.04)), side("6h", around(3.08))))
    assert better.sentence == (
        "rope is better than 6h at equal hours: -0.01000 nats (95%: -0.01283 to -0.00717) a byte"
        " (3 seeds against 3, Welch, p = 0.00061)"
    )
    tiny = judge(sides(side("rope", around(3.0785, 0.01)), side("6h", around(3.08, 0.01))))
    assert tiny.verdict == BETTER
    assert tiny.sentence.endswith(", by less than 0.5% of token perplexity")
    for result, claim, bears in (
        (tiny, EQUIVALENT, True),
        (tiny, BETTER, True),
        (better, EQUIVALENT, False),
        (better, BETTER, True),
    ):
        claimed = dataclasses.replace(result, claim=claim)
        words = "holds" if bears else "is not shown"
        assert f"the claim that it is {claim} {words}\n" in in_words(claimed)
    single = judge(sides(side("rope", [3.0]), side("6h", [3.1])))
    assert single.verdict == NOT_SHOWN
    assert single.sentence.endswith("; one seed a side cannot tell how sure that is")
    assert single.power is None and json.loads(as_json(single))["nats_per_byte"]["low"] is None


def test_the_margin_is_half_a_percent_of_token_perplexity():
    result = judge(sides(side("rope", around(3.04)), side("6h", around(3.08))))
    in_nats_per_token = result.margin / TOKENS_PER_BYTE
    assert math.exp(in_nats_per_token) == pytest.approx(1.005, rel=1e-12)
    # of the baseline's tokens, whatever the contender's are
    contender = side("rope", around(3.04))
    halved = [
        dataclasses.replace(score, text_tokens=score.text_tokens // 2) for score in contender.scores
    ]
    other = dataclasses.replace(contender, scores=tuple(halved))
    result = judge(sides(other, side("6h", around(3.08)), one_tokenizer=False))
    assert result.margin == pytest.approx(math.log(1.005) * TOKENS_PER_BYTE, rel=1e-12)


def test_pairs_only_where_untrained_evaluations_are_the_same():
    noise = [0.5, -0.4, 0.1]
    contender = [3.07 + part for part in noise]
    baseline = [3.08 + part + error for part, error in zip(noise, (1e-4, -1e-4, 0))]
    untrained = [(10.0, 9.0), (11.0, 9.5), (12.0, 9.9)]
    together = sides(side("lr", contender, untrained), side("6h", baseline, untrained))
    result = judge(together)
    assert result.is_paired and result.verdict == BETTER
    assert "paired by seed" in result.sentence
    # of the pairs' differences, not of the seeds
    deviation = np.std(np.subtract(contender, baseline), ddof=1) * TOKENS_PER_BYTE
    assert result.power.deviation == pytest.approx(deviation, rel=1e-6)
    expected = stats.ttest_rel(contender, baseline)
    assert result.per_byte.p == pytest.approx(expected.pvalue, rel=1e-6)
    others = [*untrained[:2], (12.0, math.nextafter(9.9, 10))]
    result = judge(sides(side("lr", contender, untrained), side("6h", baseline, others)))
    assert not result.is_paired and result.verdict == NOT_SHOWN
    result = judge(sides(side("lr", contender), side("6h", baseline)))
    assert not result.is_paired
    # as of two models whose output layers begin at zero
    alike = [(10.0, 9.0)] * 3
    result = judge(sides(side("lr", contender, alike), side("6h", baseline, alike)))
    assert not result.is_paired


def test_heads_of_zeros_are_no_pairs():
    """Every model costs log(vocabulary) a token before training then, whatever its weights."""
    untrained = [(10.0, 9.0)] * 3
    contender = side("zero", around(3.04), untrained)
    result = judge(sides(contender, side("6h", around(3.08), untrained)))
    assert not result.is_paired and result.verdict == BETTER


def test_the_same_losses_under_another_name():
    untrained = [(10.0, 9.0), (11.0, 9.5), (12.0, 9.9)]
    baseline = side("6h", around(3.08), untrained)
    result = judge(sides(side("same", around(3.08), untrained), baseline))
    assert result.verdict == EQUIVALENT and result.per_byte.value == 0
    assert result.power.needed is None
    # drawn apart, they are no pairs, and three seeds do not show that they are the same
    result = judge(sides(side("same", around(3.08)), side("6h", around(3.08))))
    assert result.verdict == NOT_SHOWN


@pytest.mark.parametrize(
    "contender, baseline, verdict, reason",
    [
        ({"missing": (2,)}, {}, NO_VERDICT, "rope: seed 2 not finished"),
        ({}, {"missing": (2, 3)}, NO_VERDICT, "6h: seeds 2, 3 not finished"),
        ({}, {"diverged": (2,)}, NO_VERDICT, "6h: seed 2 diverged"),
        ({"diverged": (2,)}, {}, NOT_SHOWN, "rope: seed 2 diverged"),
    ],
)
def test_seeds_without_a_score_are_told_and_spoil_the_verdict(contender, baseline, verdict, reason):
    result = judge(
        sides(side("rope", [3.0, 3.001], **contender), side("6h", [3.1, 3.1], **baseline))
    )
    assert result.verdict == verdict
    assert result.sentence.endswith(f": {reason}")


def test_two_seeds_against_many_are_no_test():
    """Simulated nulls: 2 against 5 find a difference in one of ten, 3 against 3 in one of 25."""
    lopsided = judge(sides(side("rope", [3.0, 3.001]), side("6h", [3.1] * 4 + [3.101])))
    assert lopsided.verdict == NOT_SHOWN
    assert lopsided.sentence.endswith(
        "; 2 seeds against 5, Welch: give the side of two as many as the other"
    )


def test_a_side_without_any_score():
    result = judge(sides(side("rope", [], missing=(0, 1)), side("6h", around(3.08))))
    assert result.sentence == "no verdict on rope: rope: seeds 0, 1 not finished"
    assert json.loads(as_json(result))["nats_per_byte"] is None
    assert in_words(result).startswith(result.sentence)
    diverged = judge(sides(side("rope", [], diverged=(0, 1)), side("6h", around(3.08))))
    assert diverged.verdict == NOT_SHOWN
    assert diverged.sentence == (
        "rope is not shown to be better or worse than 6h: rope: seeds 0, 1 diverged"
    )


def sums_of(nats):
    """Of documents of 1,000 bytes and 250 tokens."""
    count = len(nats)
    hashes = tuple(f"{index:064x}" for index in range(count))
    tokens = np.full(count, 250)
    return DocumentSums(hashes, np.array(nats), tokens, np.array(nats), tokens, 4 * tokens)


def test_the_text_is_a_second_question():
    """Seeds that agree on a difference which one document alone makes."""
    baseline = [[700.0] * 20] * 3
    one_document = [[699.0 - 100 * (index == 7) + 2 * (index % 2) for index in range(20)]] * 3
    all_documents = [[690.0 + (index % 2) for index in range(20)]] * 3

    def judged(nats):
        documents = [sums_of(row) for row in nats]
        others = [sums_of(row) for row in baseline]
        contender = side("rope", around(3.04), documents=documents)
        return judge(sides(contender, side("6h", around(3.08), documents=others)))

    doubtful = judged(one_document)
    assert doubtful.verdict == BETTER
    assert doubtful.sentence.endswith("; but this text is too little to say so of other text")
    assert doubtful.documents.high >= 0
    sure = judged(all_documents)
    assert "this text" not in sure.sentence and sure.documents.high < 0
    assert "over 20 documents, of which 100% are better" in in_words(sure)


def test_without_the_documents_of_every_seed_there_is_no_second_answer():
    documents = [sums_of([700.0, 710.0])] * 2 + [None]
    contender = side("rope", around(3.04), documents=documents)
    assert judge(sides(contender, side("6h", around(3.08), documents=documents))).documents is None


def test_another_tokenizer_is_compared_by_bytes_alone():
    together = sides(side("rope", around(3.04)), side("6h", around(3.08)), one_tokenizer=False)
    result = judge(together)
    assert result.per_token is None and result.verdict == BETTER
    assert "a token, " not in in_words(result).partition("difference")[2]


def test_power_of_the_published_seeds():
    """One standard deviation is 0.0053 nats a token; three seeds resolve more than a percent."""
    result = judge(sides(side("rope", PUBLISHED[:3]), side("6h", PUBLISHED[2:])))
    deviation = result.power.deviation / TOKENS_PER_BYTE
    expected = np.sqrt(np.mean([np.var(PUBLISHED[:3], ddof=1), np.var(PUBLISHED[2:], ddof=1)]))
    assert deviation == pytest.approx(expected, rel=1e-9)
    assert list(result.power.resolved) == [3, 5, 10]
    assert result.power.for_equivalence > 10
    resolved = list(result.power.resolved.values())
    assert resolved == sorted(resolved, reverse=True)
    assert np.std(PUBLISHED, ddof=1) == pytest.approx(0.0053, abs=5e-5)


def test_false_verdicts_of_simulated_nulls():
    """1,000 contenders that are their baselines under three other seeds."""
    generator = np.random.default_rng(20)
    losses = 3.08 + 0.0053 * generator.standard_normal((1000, 2, 3))
    verdicts = []
    for contender, baseline in losses.tolist():
        verdicts.append(judge(sides(side("null", contender), side("6h", baseline))).verdict)
    wrong = sum(verdict in (BETTER, WORSE) for verdict in verdicts)
    assert 30 <= wrong <= 70
    paired = [(float(seed), 1.0) for seed in range(3)]
    verdicts = []
    for contender, baseline in losses.tolist():
        null = side("null", contender, paired)
        verdicts.append(judge(sides(null, side("6h", baseline, paired))).verdict)
    wrong = sum(verdict in (BETTER, WORSE) for verdict in verdicts)
    assert 30 <= wrong <= 70


def test_json_is_the_same_again():
    together = sides(side("rope", around(3.04)), side("6h", around(3.08)))
    content = json.loads(as_json(judge(together)))
    assert content == judgements.as_dict(judge(together))
    assert content["contender"]["seeds"][0]["normalised_ppl"] == pytest.approx(
        math.exp(content["contender"]["seeds"][0]["text_nats"] / 400_000)
    )


def test_what_is_not_equal_beside_the_compute_that_is():
    contender = side("rope", around(3.04))
    cheaper = dataclasses.replace(contender, compute={**contender.compute, "flops": 0.71e18})
    words = in_words(judge(sides(cheaper, side("6h", around(3.08)))))
    assert "rope took 0.71 times the FLOPs\n" in words
    assert "times the" not in in_words(judge(sides(contender, side("6h", around(3.08)))))
