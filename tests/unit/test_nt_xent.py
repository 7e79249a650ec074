"""NT-Xent against the sum written out by hand, its closed forms and its symmetries."""

import math

import numpy as np
import pytest
import torch

from medsegdiff_cli.losses import nt_xent

BOTH = pytest.mark.parametrize("with_positive", [True, False])
NEGATIVES = pytest.mark.parametrize("same_view", [True, False])


def by_hand(first: np.ndarray, second: np.ndarray, temperature: float, with_positive: bool, same_view: bool) -> float:
    """Return Eq. 1 of Chen et al. 2020, anchor by anchor."""
    n = len(first)
    everything = [(view, item) for view in (0, 1) for item in range(n)]
    views = (first, second)

    def similarity(one: tuple[int, int], two: tuple[int, int]) -> float:
        a, b = views[one[0]][one[1]], views[two[0]][two[1]]
        return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) / temperature)

    total = 0.0
    for view, item in everything:
        positive = (1 - view, item)
        compared = [other for other in everything if other != (view, item)]
        if not with_positive:
            compared.remove(positive)
        if not same_view:
            compared = [other for other in compared if other[0] != view]
        denominator = sum(math.exp(similarity((view, item), other)) for other in compared)
        total -= math.log(math.exp(similarity((view, item), positive)) / denominator)
    return total / len(everything)


def views_of(n: int, n_features: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, n, n_features, generator=random, dtype=torch.float64)
    return first, first + 0.7 * second


@BOTH
@NEGATIVES
@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_sum_by_hand(n: int, temperature: float, with_positive: bool, same_view: bool) -> None:
    first, second = views_of(n)
    kind = {"temperature": temperature, "positive_in_denominator": with_positive, "same_view_negatives": same_view}
    expected = by_hand(first.numpy(), second.numpy(), temperature, with_positive, same_view)
    assert nt_xent(first, second, **kind).item() == pytest.approx(expected, rel=1e-9)
    assert nt_xent(second, first, **kind).item() == pytest.approx(expected, rel=1e-9)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    assert nt_xent(first[order], second[order], **kind).item() == pytest.approx(expected, rel=1e-9)
    # Lengths do not matter, nor does whatever is common to all: a turn of the space.
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    scaled = 3 * first @ turn, torch.rand(n, 1, dtype=torch.float64) * second @ turn
    assert nt_xent(*scaled, **kind).item() == pytest.approx(expected, rel=1e-9)


@BOTH
@NEGATIVES
def test_what_cannot_be_told_apart_costs_the_logarithm_of_what_it_is_compared_with(
    with_positive: bool, same_view: bool
) -> None:
    n = 6
    same = torch.ones(n, 3)
    compared = (2 * n - 1 if same_view else n) - (not with_positive)
    kind = {"positive_in_denominator": with_positive, "same_view_negatives": same_view}
    assert nt_xent(same, same, temperature=0.1, **kind).item() == pytest.approx(math.log(compared), rel=1e-6)


def test_groups_are_compared_each_for_itself_and_broadcast() -> None:
    first, second = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    each = [nt_xent(a, b, temperature=0.2) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(nt_xent(first, second, temperature=0.2), torch.stack(each).mean())
    for same_view in (True, False):
        pairs = [nt_xent(a, b, temperature=0.2, same_view_negatives=same_view) for a in first for b in second]
        everything = nt_xent(first[:, None], second[None], temperature=0.2, same_view_negatives=same_view)
        torch.testing.assert_close(everything, torch.stack(pairs).mean())


@BOTH
def test_an_item_alone_has_nothing_to_be_told_apart_from(with_positive: bool) -> None:
    first, second = (view.requires_grad_() for view in views_of(1))
    loss = nt_xent(first, second, temperature=0.1, positive_in_denominator=with_positive)
    loss.backward()
    assert loss.item() == 0
    assert first.grad is not None
    assert first.grad.abs().max() == 0


def test_it_is_exact_under_autocast_and_finite_for_extremes() -> None:
    first, second = (view.float() for view in views_of(8, 64))
    expected = nt_xent(first, second, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(nt_xent(first, second, temperature=0.1), expected, rtol=0, atol=0)
    zeros = torch.zeros(4, 3, requires_grad=True)
    loss = nt_xent(zeros, zeros, temperature=1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)
    assert torch.isfinite(zeros.grad).all()
    apart = 1e15 * torch.eye(4)
    assert nt_xent(apart, apart, temperature=1e-3).item() == pytest.approx(0, abs=1e-6)
