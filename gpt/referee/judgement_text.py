"""A judgement in words: the verdict, and the lines that it rests on."""

import math

from gpt.referee.entry import OVER
from gpt.referee.judgement import MARGIN, Judgement, in_nats
from gpt.referee.scores import EQUAL, WORDS_OF, Sides


def in_words(judgement: Judgement) -> str:
    """The verdict, and the lines that it rests on."""
    sides = judgement.sides
    lines = [judgement.sentence]
    if judgement.claim is not None:
        holds = "holds" if judgement.bears_claim else "is not shown"
        lines.append(f"the claim that it is {judgement.claim} {holds}")
    lines.append("")
    for side in (sides.contender, sides.baseline):
        for score in side.scores:
            lines.append(
                f"  {side.name} seed {score.seed}: {score.loss:.5f} nats a token,"
                f" {score.normalised_loss:.5f} a byte, normalised perplexity"
                f" {math.exp(score.normalised_loss):.5f}"
            )
    if sides.contender.missing or sides.baseline.missing:
        lines.append("`python tools/referee.py run` goes on with what is not finished")
    if judgement.per_byte is None:
        return "\n".join([*lines, *judgement.notices]).rstrip()
    measured_on = sides.measured_on
    lines.append(
        f"on the split {measured_on['split']!r}: {measured_on['bytes']:,} bytes, last_n"
        f" {measured_on['last_n']}"
    )
    if judgement.per_token is not None:
        share = math.expm1(judgement.per_token.value)
        lines.append(
            f"difference: {in_nats(judgement.per_token)} a token, {share:+.2%} of token perplexity"
        )
    lines += _unequal_in_words(judgement.sides)
    lines += _rest_in_words(judgement)
    lines += judgement.notices
    return "\n".join(lines)


def _unequal_in_words(sides: Sides) -> list[str]:
    """What equal compute is not over, where the sides differ in it."""
    lines = []
    for over in OVER:
        own, others = sides.contender.compute[over], sides.baseline.compute[over]
        if over == sides.over or own is None or not others:
            continue
        ratio = own / others
        if abs(ratio - 1) > EQUAL:
            lines.append(f"{sides.contender.name} took {ratio:.3g} times the {WORDS_OF[over]}")
    return lines


def _rest_in_words(judgement: Judgement) -> list[str]:
    lines = []
    per_byte = judgement.per_byte
    assert per_byte is not None
    if math.isfinite(per_byte.error):
        lines.append(
            f"equivalent within {MARGIN:.1%} of token perplexity: p ="
            f" {per_byte.p_equivalent(judgement.margin):.2g}"
        )
    if judgement.documents is not None:
        documents = judgement.documents
        lines.append(
            f"these very runs on other text, their seeds aside: {documents.low:+.5f} to"
            f" {documents.high:+.5f} nats a byte (95%, bootstrap over {documents.documents}"
            f" documents, of which {documents.better:.0%} are better)"
        )
    if judgement.worth is not None:
        lines.append(judgement.worth.in_words())
    if judgement.power is not None:
        resolved = judgement.power.resolved.items()
        each = ", ".join(f"{count} seeds {share:.2%}" for count, share in resolved)
        lines.append(f"what seeds a side resolve, in token perplexity, four times of five: {each}")
        if judgement.power.needed is not None:
            lines.append(f"seeds a side that would find this difference: {judgement.power.needed}")
        if judgement.power.for_equivalence is not None:
            lines.append(
                "seeds a side that would show equal sides to be equivalent:"
                f" {judgement.power.for_equivalence}"
            )
    return lines
