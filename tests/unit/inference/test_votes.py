"""Votes of members: the majority and the pairwise Dice, against loops over members and pairs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from toy_methods import ToyMethod, predicted

from medsegdiff_cli.inference.fusion import RunningFusion, label_map

few = hypothesis_settings(max_examples=60, deadline=None)
cases = given(
    members=st.integers(2, 9), n_classes=st.integers(2, 4), exclusive=st.booleans(), seed=st.integers(0, 2**32 - 1)
)


def fused(members, *, exclusive=True, rule="mean", keep_labels=False):
    fusion = RunningFusion(
        exclusive=exclusive, keep_variance=False, keep_labels=keep_labels, rule=rule, keep_votes=True
    )
    for member in members:
        fusion.add(torch.as_tensor(member, dtype=torch.float32).clone())
    return fusion


def random_members(members, n_classes, exclusive, seed, shape=(5, 6)):
    scores = np.random.default_rng(seed).random((members, n_classes, *shape)) ** 3
    return (scores / scores.sum(1, keepdims=True) if exclusive else scores).astype(np.float32)


def masks_of(members, exclusive):
    """Return bool (member, class, *grid): where each member sees each class."""
    if not exclusive:
        return members > 0.5
    winner = members.argmax(1)
    return np.stack([winner == index for index in range(members.shape[1])], 1)


def dice_over_all_pairs(masks):
    """Return the pooled Dice of (member, *grid) masks, pair by pair."""
    shared = total = 0
    for first, second in itertools.combinations(masks, 2):
        shared += 2 * int((first & second).sum())
        total += int(first.sum()) + int(second.sum())
    return shared / total if total else None


@few
@cases
def test_pairwise_dice_equals_the_loop_over_all_pairs(members, n_classes, exclusive, seed):
    values = random_members(members, n_classes, exclusive, seed)
    masks = masks_of(values, exclusive)
    expected = [dice_over_all_pairs(masks[:, index]) for index in range(n_classes)]
    assert list(fused(values, exclusive=exclusive).pairwise_dice()) == pytest.approx(expected, rel=1e-12)


def test_pairwise_dice_by_hand():
    # Three members see the class in voxels {0, 1}, {1, 2} and {1}: the pairs' Dice are 2/4, 2/3 and 2/3, pooled 6/10.
    foreground = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
    fusion = fused([torch.stack([1 - f, f]) for f in foreground])
    assert fusion.pairwise_dice()[1] == pytest.approx(0.6)


def test_equal_members_agree_fully_disjoint_ones_not_at_all_and_unseen_classes_have_no_figure():
    first = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    second = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert fused([first, first, first]).pairwise_dice() == (1, 1, None)
    assert fused([first, second]).pairwise_dice() == (0, 0, None)


def test_one_member_has_no_pairs():
    assert fused([torch.rand(3, 4)]).pairwise_dice() is None


def test_votes_that_were_not_counted_are_refused():
    fusion = RunningFusion(exclusive=True, keep_variance=False, keep_labels=False)
    fusion.add(torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="keeps no votes"):
        fusion.pairwise_dice()


@pytest.mark.parametrize("count", [255, 256, 300])
def test_more_members_than_a_byte_counts(count):
    values = np.stack([[[0.0, 0.2, 0.9]], [[1.0, 0.8, 0.1]]], 1)  # one member: class 1 wins in two of three voxels
    everyone = np.repeat(values, count - 1, 0)
    everyone = np.concatenate([everyone, np.flip(values, 1)])
    expected = [dice_over_all_pairs(masks_of(everyone, True)[:, index]) for index in (0, 1)]
    fusion = fused(everyone, rule="majority")
    assert list(fusion.pairwise_dice()) == pytest.approx(expected, rel=1e-12)
    assert label_map(fusion.scores, True).tolist() == [1, 1, 0]


def majority_by_hand(values, exclusive):
    """Vote voxel by voxel; between equal votes the mean probability decides."""
    votes, mean = masks_of(values, exclusive).sum(0), values.astype(np.float64).mean(0)
    members, n_classes = values.shape[:2]
    label = np.zeros(values.shape[2:], int)
    for place in np.ndindex(label.shape):
        cast, p = votes[(slice(None), *place)], mean[(slice(None), *place)]
        if exclusive:
            label[place] = max(range(n_classes), key=lambda index: (cast[index], p[index]))
            continue
        for index in range(n_classes):
            more, fewer = int(cast[index]), members - int(cast[index])
            label[place] += 2**index * (more > fewer or (more == fewer and p[index] > 0.5))
    return label


@few
@cases
def test_the_majority_is_that_of_a_vote_in_each_voxel(members, n_classes, exclusive, seed):
    values = random_members(members, n_classes, exclusive, seed)
    found = label_map(fused(values, exclusive=exclusive, rule="majority").scores, exclusive)
    np.testing.assert_array_equal(found.numpy(), majority_by_hand(values, exclusive))


def test_a_sure_minority_wins_the_mean_but_not_the_vote():
    foreground = torch.tensor([0.45, 0.45, 1.0])
    members = [torch.stack([1 - f, f])[:, None] for f in foreground]
    assert label_map(fused(members).scores, True).tolist() == [1]
    assert label_map(fused(members, rule="majority").scores, True).tolist() == [0]


def test_two_against_two_is_decided_by_the_mean_probability():
    foreground = torch.tensor([[0.1, 0.4], [0.1, 0.4], [0.6, 0.9], [0.6, 0.9]])  # means 0.35 and 0.65
    members = [torch.stack([1 - f, f]) for f in foreground]
    assert label_map(fused(members, rule="majority").scores, True).tolist() == [0, 1]
    regions = [f[None] for f in foreground]
    assert label_map(fused(regions, exclusive=False, rule="majority").scores, False).tolist() == [0, 1]


def test_the_majority_of_one_member_is_that_member():
    member = torch.rand(3, 4, 5)
    torch.testing.assert_close(fused([member], rule="majority").scores, member, rtol=0, atol=0)


def test_agreement_is_measured_against_the_fused_label_map_of_the_rule():
    foreground = torch.tensor([0.45, 0.45, 1.0])
    members = [torch.stack([1 - f, f])[:, None] for f in foreground]
    assert fused(members, keep_labels=True).agreement() == pytest.approx(1 / 3)  # fused: foreground, as the third
    assert fused(members, keep_labels=True, rule="majority").agreement() == pytest.approx(2 / 3)


def test_members_of_a_method_of_draws_and_of_models_all_vote():
    image = torch.zeros(1, 4, 4)
    two = ToyMethod(lambda x, _: torch.stack([torch.cat([1 - p, p], 1) for p in (x + 0.9, x + 0.2)], 1), n_dims=2)
    one = ToyMethod(lambda x, _: torch.cat([0.4 - x, 0.6 + x], 1)[:, None], n_dims=2, stochastic=True)
    fusion = predicted([two, one], image, patch_size=(4, 4), draws=3, fusion="majority", keep_votes=True)
    assert fusion.count == 5  # two members, then three draws: four of the five see the foreground everywhere
    # Of 10 pairs, 6 see it both and 4 by one half: 2 * 6 / (2 * 6 + 4).
    assert fusion.pairwise_dice() == pytest.approx((0, 12 / 16))
    assert label_map(fusion.scores, True).unique().tolist() == [1]
