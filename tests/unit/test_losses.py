"""Dice and cross-entropy: hand-derived values, MONAI as an oracle, gradients, ignored voxels and empty patches."""

import math
from functools import partial

import pytest
import torch

from medsegdiff_cli.losses import binary_cross_entropy, cross_entropy, dice_and_cross_entropy, soft_dice

# Two images of four voxels; background and one class.
FOREGROUND = torch.tensor([[0.5, 1.0, 0.0, 0.25], [0.0, 0.5, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]])
PROBABILITIES = torch.stack([1 - FOREGROUND, FOREGROUND], dim=1)
ONE_HOT = torch.stack([1 - MASK, MASK], dim=1)


def random_case(n_classes=3, size=(4, 5), batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, n_classes, *size, generator=generator, dtype=torch.float64)
    label = torch.randint(n_classes, (batch, *size), generator=generator)
    valid = torch.rand(batch, *size, generator=generator) < 0.7
    return logits, label, valid


def test_dice_of_each_patch_is_averaged():
    # overlap 1.5 of 1.75 + 2, and 0 of 0.5 + 1.
    expected = (2 * 1.5 / (1.75 + 2) + 2 * 0 / (0.5 + 1)) / 2
    dice = soft_dice(PROBABILITIES, ONE_HOT, batch_dice=False, smooth=0)
    assert dice.item() == pytest.approx(expected)


def test_batch_dice_divides_after_the_sum_over_patches():
    expected = 2 * (1.5 + 0) / (1.75 + 2 + 0.5 + 1)
    assert soft_dice(PROBABILITIES, ONE_HOT, batch_dice=True, smooth=0).item() == pytest.approx(expected)


def test_the_background_counts_when_asked_for():
    foreground = 2 * (1.5 + 0) / (1.75 + 2 + 0.5 + 1)
    background = 2 * (0 + 0 + 1 + 0.75 + 1 + 0.5 + 1 + 0) / (2.25 + 2 + 3.5 + 3)
    dice = soft_dice(PROBABILITIES, ONE_HOT, batch_dice=True, include_background=True, smooth=0)
    assert dice.item() == pytest.approx((foreground + background) / 2)


def test_ignored_voxels_leave_the_sums_of_dice():
    valid = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    expected = 2 * 1.5 / (1.5 + 2 + 0.5 + 1)
    for given in (valid, valid[:, None]):
        dice = soft_dice(PROBABILITIES, ONE_HOT, given, batch_dice=True, smooth=0)
        assert dice.item() == pytest.approx(expected)


def test_dice_of_nothing_but_background_is_refused():
    with pytest.raises(ValueError, match="needs 2 or more classes"):
        soft_dice(PROBABILITIES[:, :1], ONE_HOT[:, :1], batch_dice=True)


def test_smoothing_is_in_numerator_and_denominator():
    expected = (2 * 1.5 + 0.5) / (1.75 + 2 + 0.5 + 1 + 0.5)
    assert soft_dice(PROBABILITIES, ONE_HOT, batch_dice=True, smooth=0.5).item() == pytest.approx(expected)


def test_an_absent_class_scores_one_only_when_it_is_not_predicted():
    absent = torch.stack([torch.ones(1, 4), torch.zeros(1, 4)], dim=1)
    assert soft_dice(absent, absent, batch_dice=False).item() == 1
    assert soft_dice(PROBABILITIES[:1], absent, batch_dice=False).item() == pytest.approx(1e-5 / 1.75, rel=1e-3)


def test_cross_entropy_is_the_mean_of_the_voxels_that_count():
    # softmax of (0, ln 3) is (1/4, 3/4).
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None].expand(1, 2, 3)
    label = torch.tensor([[0, 1, 1]])
    assert cross_entropy(logits, label).item() == pytest.approx((math.log(4) + 2 * math.log(4 / 3)) / 3)
    valid = torch.tensor([[True, True, False]])
    unknown = torch.tensor([[0, 1, 77]])
    assert cross_entropy(logits, unknown, valid).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_binary_cross_entropy_is_the_mean_over_regions_and_voxels_that_count():
    logits = torch.full((1, 2, 2), math.log(3.0))  # sigmoid: 3/4
    mask = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.uint8)
    assert binary_cross_entropy(logits, mask).item() == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    valid = torch.tensor([[True, False]])
    mask[0, 0, 1] = 255  # not annotated
    assert binary_cross_entropy(logits, mask, valid).item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_dice_equals_monai(batch_dice, exclusive):
    monai_losses = pytest.importorskip("monai.losses")
    logits, label, _ = random_case(size=(3, 4, 5))
    mask = torch.nn.functional.one_hot(label, 3).movedim(-1, 1)
    oracle = monai_losses.DiceLoss(
        softmax=exclusive, sigmoid=not exclusive, include_background=not exclusive, batch=batch_dice,
        smooth_nr=1e-5, smooth_dr=1e-5,
    )(logits, mask)  # fmt: skip
    terms = dice_and_cross_entropy(logits, label if exclusive else mask, exclusive=exclusive, batch_dice=batch_dice)
    torch.testing.assert_close(terms["dice"], oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_with_ignored_voxels_equals_monai_without_them(batch_dice):
    monai_losses = pytest.importorskip("monai.losses")
    logits, label, valid = random_case()
    mask = torch.nn.functional.one_hot(label, 3).movedim(-1, 1)
    # MONAI has no mask after the sigmoid: logits of minus infinity and an empty mask make voxels add nothing.
    hidden = logits.where(valid[:, None], -1e4)
    expected = monai_losses.DiceLoss(sigmoid=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5)(
        hidden, mask * valid[:, None]
    )
    actual = dice_and_cross_entropy(logits, mask, valid, exclusive=False, batch_dice=batch_dice)["dice"]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_gradients_equal_finite_differences(exclusive, batch_dice):
    logits, label, valid = random_case(size=(2, 2))
    target = label if exclusive else torch.nn.functional.one_hot(label, 3).movedim(-1, 1)

    def total(values):
        terms = dice_and_cross_entropy(values, target, valid, exclusive=exclusive, batch_dice=batch_dice, dice_weight=2)
        return terms["dice"] + terms["cross_entropy"]

    assert torch.autograd.gradcheck(total, logits.requires_grad_())


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("unannotated", [255, -1, 3])
def test_ignored_voxels_change_neither_value_nor_gradient(exclusive, unannotated):
    logits, label, valid = random_case()
    target = label if exclusive else torch.nn.functional.one_hot(label, 3).movedim(-1, 1)
    counted = valid if exclusive else valid[:, None]
    loss = partial(dice_and_cross_entropy, valid=valid, exclusive=exclusive, batch_dice=True)
    logits.requires_grad_()
    terms = loss(logits, target.where(counted, unannotated))
    (gradient,) = torch.autograd.grad(terms["dice"] + terms["cross_entropy"], logits)
    assert gradient.movedim(1, -1)[~valid].count_nonzero() == 0
    assert gradient.movedim(1, -1)[valid].count_nonzero() == 3 * valid.sum()
    for name, value in loss(logits.where(valid[:, None], 50.0), target).items():
        torch.testing.assert_close(value, terms[name], rtol=1e-12, atol=1e-12)


@pytest.mark.fault("F95")
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("counted", [None, True, False])
def test_empty_patches_and_ignored_patches_are_finite(exclusive, batch_dice, counted):
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.zeros((2, 4, 4) if exclusive else (2, 3, 4, 4), dtype=torch.long)
    valid = None if counted is None else torch.full((2, 4, 4), counted)
    terms = dice_and_cross_entropy(logits, target, valid, exclusive=exclusive, batch_dice=batch_dice)
    (terms["dice"] + terms["cross_entropy"]).backward()
    assert torch.isfinite(torch.stack([*terms.values()])).all()
    assert torch.isfinite(logits.grad).all()
    if counted is False:
        assert logits.grad.count_nonzero() == 0
        assert [value.item() for value in terms.values()] == [0, 0]


def test_weights_scale_the_terms():
    logits, label, _ = random_case()
    loss = partial(dice_and_cross_entropy, logits, label, exclusive=True, batch_dice=False)
    plain, weighted = loss(), loss(dice_weight=3, ce_weight=0.5)
    assert weighted["dice"].item() == pytest.approx(3 * plain["dice"].item())
    assert weighted["cross_entropy"].item() == pytest.approx(plain["cross_entropy"].item() / 2)


@pytest.mark.parametrize("exclusive", [True, False])
def test_half_precision_logits_are_summed_in_float32(exclusive):
    # 300 x 300 voxels overflow float16 (65504) and stall bfloat16 at 256.
    label = torch.zeros(1, 300, 300, dtype=torch.long)
    label[:, :150] = 1
    target = label if exclusive else torch.stack([1 - label, label], dim=1)
    loss = partial(dice_and_cross_entropy, exclusive=exclusive, batch_dice=False)
    expected = loss(torch.zeros(1, 2, 300, 300), target)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            terms = loss(torch.zeros(1, 2, 300, 300, dtype=dtype), target)
        for name, value in terms.items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(expected[name].item(), rel=1e-6)
