"""Fusion of members: running mean and variance, label maps, entropy and agreement."""

import math

import pytest
import torch
from scipy import stats

from medsegdiff_cli.inference.fusion import RunningFusion, entropy, label_map


def fused(members, *, exclusive=True):
    fusion = RunningFusion(exclusive=exclusive, keep_variance=True, keep_labels=True)
    for member in members:
        fusion.add(torch.as_tensor(member).clone())
    return fusion


def test_streaming_mean_and_variance_equal_those_of_the_stack():
    members = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    fusion = fused(members)
    torch.testing.assert_close(fusion.mean, members.mean(0))
    torch.testing.assert_close(fusion.variance, members.var(0, correction=0))


def test_identical_members_have_no_variance():
    member = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    assert fused([member] * 5).variance.abs().max() == 0
    assert fused([member]).variance.abs().max() == 0


def test_variance_that_was_not_kept_is_refused():
    fusion = RunningFusion(exclusive=True, keep_variance=False, keep_labels=False)
    fusion.add(torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="keeps no variance"):
        _ = fusion.variance


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_entropy_of_a_uniform_distribution_is_the_logarithm_of_the_classes(n_classes):
    uniform = torch.full((n_classes, 2, 2), 1 / n_classes)
    torch.testing.assert_close(entropy(uniform, True), torch.full((2, 2), math.log(n_classes)))


def test_entropy_of_certainty_is_zero():
    certain = torch.eye(3).reshape(3, 3)
    assert entropy(certain, True).tolist() == [0, 0, 0]
    assert entropy(certain, False).abs().max() < 1e-6


def test_entropy_equals_scipys():
    p = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exclusive = p / p.sum(0)
    torch.testing.assert_close(entropy(exclusive, True), torch.from_numpy(stats.entropy(exclusive.numpy())))
    each = torch.from_numpy(stats.entropy(torch.stack([p, 1 - p]).numpy()))  # (region, voxel)
    torch.testing.assert_close(entropy(p, False), each.mean(0))


def test_entropy_of_undecided_regions_is_the_logarithm_of_2():
    torch.testing.assert_close(entropy(torch.full((3, 4), 0.5), False), torch.full((4,), math.log(2)))


def test_agreement_is_the_mean_dice_with_the_fused_labels():
    # Foreground probability in four voxels; the mean is [0.9, 0.7, 0.2, 0.1], so the fused label is [1, 1, 0, 0].
    foreground = torch.tensor([[0.9, 0.9, 0.0, 0.1], [0.9, 0.9, 0.6, 0.1], [0.9, 0.3, 0.0, 0.1]])
    fusion = fused(torch.stack([torch.stack([1 - row, row]) for row in foreground]))
    assert [labels.tolist() for labels in fusion.member_labels] == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert fusion.agreement() == pytest.approx((1 + 2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)) / 3)


def test_agreement_needs_two_members_and_is_1_when_all_are_empty():
    empty = torch.stack([torch.ones(4), torch.zeros(4)])
    assert fused([empty]).agreement() is None
    assert fused([empty, empty]).agreement() == 1


def test_exclusive_labels_are_the_most_probable_class():
    probabilities = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.2, 0.5], [0.2, 0.7, 0.3]])
    labels = label_map(probabilities, True)
    assert labels.tolist() == [0, 2, 1]
    assert labels.dtype == torch.uint8


def test_regions_are_a_bit_code_of_those_above_one_half():
    probabilities = torch.tensor([[0.9, 0.5, 0.1, 0.6], [0.1, 0.51, 0.2, 0.7], [0.1, 0.2, 0.3, 0.8]])
    labels = label_map(probabilities, False)
    assert labels.tolist() == [0b001, 0b010, 0b000, 0b111]
    assert labels.dtype == torch.uint8


def test_many_classes_and_many_regions_do_not_overflow():
    probabilities = torch.zeros(300, 1)
    probabilities[299] = 1
    assert label_map(probabilities, True).tolist() == [299]
    assert label_map(probabilities[-20:], False).tolist() == [2**19]
