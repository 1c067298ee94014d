"""How a batch is shared out, and what is said where it cannot be."""

import itertools

import pytest

from gpt.config.batch import plan_batch
from gpt.errors import UserError


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((256, None, 8, 1), (256, 32, 8, 1)),
        ((256, None, 8, 8), (256, 4, 8, 8)),
        ((256, 4, None, 8), (256, 4, 8, 8)),
        ((None, 4, 2, 8), (64, 4, 2, 8)),
        ((None, 4, None, 2), (8, 4, 1, 2)),
        ((16, None, None, 2), (16, 8, 1, 2)),
        ((16, 4, 2, 2), (16, 4, 2, 2)),
        ((256, 32, None, 8), (256, 32, 1, 8)),
        ((256, 32, None, 64), (256, 4, 1, 64)),
        ((16, 3, None, 2), (16, 2, 4, 2)),
        ((72, 6, None, 8), (72, 3, 3, 8)),
        ((254, 32, None, 1), (254, 2, 127, 1)),
        ((7, 100, None, 7), (7, 1, 1, 7)),
    ],
)
def test_batch_is_solved(arguments, expected):
    plan = plan_batch(*arguments)
    assert (plan.train_batch_size, plan.micro_size, plan.accumulation, plan.world_size) == expected
    # beside an accumulation a micro batch is exact
    limits = arguments[1] if arguments[2] is None else None
    assert plan.micro_limit == limits


def test_a_limit_takes_the_largest_that_fits():
    """Against a search; one that divides, which DeepSpeed takes too, is taken as it is."""
    for share, limit, ranks in itertools.product(range(1, 61), range(1, 61), (1, 8)):
        plan = plan_batch(share * ranks, limit, None, ranks)
        assert plan.micro_size * plan.accumulation == share and plan.micro_size <= limit
        assert not any(share % larger == 0 for larger in range(plan.micro_size + 1, limit + 1))


@pytest.mark.parametrize(
    "arguments",
    [
        (256, None, 8, 3),
        (256, None, 512, 1),
        (16, 4, 4, 2),
        (3, None, 1, 4),
        (3, 1, None, 4),
        (256, 32, None, 6),
        (16, 3, 5, 1),
        (3, None, None, 2),
    ],
)
def test_batch_that_does_not_fit_says_what_would(arguments):
    advice = (
        "(with|so many passes take|train_batch_size must be a multiple of the ranks, for example)"
    )
    with pytest.raises(
        UserError, match=rf"is not (micro batch|a multiple of) .* rank\(s\): {advice}"
    ):
        plan_batch(*arguments)


def test_batch_advice_is_right():
    with pytest.raises(UserError) as caught:
        plan_batch(24, None, 5, 4)
    assert (
        str(caught.value)
        == "train_batch_size 24 is not a multiple of gradient_accumulation_steps 5 x 4 rank(s):"
        " with 4 rank(s) gradient_accumulation_steps can be 1, 2, 3, 6"
    )
    for accumulation in (1, 2, 3, 6):
        plan_batch(24, None, accumulation, 4)
    with pytest.raises(UserError) as caught:
        plan_batch(256, 64, 2, 8)
    assert str(caught.value).endswith(
        "so many passes take micro batches of 16: set train_micro_batch_size_per_gpu to "
        "that, or leave one of the two out"
    )
    assert plan_batch(256, 16, 2, 8).micro_size == 16


def test_advice_for_ranks_that_do_not_divide():
    with pytest.raises(UserError) as caught:
        plan_batch(256, None, 8, 6)
    assert str(caught.value).endswith(
        "for example 240 or 288; 256 sequences fit 1, 2, 4, 8 rank(s)"
    )
    assert [plan_batch(fitting, None, 8, 6).micro_size for fitting in (240, 288)] == [5, 6]
    with pytest.raises(UserError) as caught:
        plan_batch(256, 32, None, 6)
    assert (
        str(caught.value)
        == "train_batch_size 256 is not a multiple of 6 rank(s): train_batch_size must be a"
        " multiple of the ranks, for example 252 or 258; 256 sequences fit 1, 2, 4, 8 rank(s)"
    )
