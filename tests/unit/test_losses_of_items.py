"""Dice and cross-entropy of each item alone: hand-derived values, torch, and the losses of whole batches."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from medsegdiff_cli.losses import dice_and_cross_entropy, losses_of_items


def random_case(n_classes=3, size=(4, 5), batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, n_classes, *size, generator=generator, dtype=torch.float64)
    label = torch.randint(n_classes, (batch, *size), generator=generator)
    valid = torch.rand(batch, *size, generator=generator) < 0.7
    return logits, label, valid


def regions_of(label, n_classes=3):
    return F.one_hot(label, n_classes).movedim(-1, 1)


def test_values_by_hand():
    """Softmax of (0, ln 3) is (1/4, 3/4)."""
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None].expand(2, 2, 4)
    label = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    terms = losses_of_items(logits, label, exclusive=True, dice_weight=3, ce_weight=20)
    half = (2 * math.log(4 / 3) + 2 * math.log(4)) / 4
    assert terms["cross_entropy"].tolist() == pytest.approx([20 * half, 20 * math.log(4)])
    # Overlap 1.5 of 3 + 2; the second item has no foreground: no Dice loss.
    assert terms["dice"].tolist() == pytest.approx([3 * (1 - 2 * 1.5 / 5), 0])


def test_dice_is_the_mean_over_the_classes_that_an_item_holds():
    p = torch.tensor([[0.5, 0.2], [0.3, 0.3], [0.2, 0.5]])
    logits = p.log()[None]
    only_first = losses_of_items(logits, torch.tensor([[1, 0]]), exclusive=True)["dice"]
    assert only_first.item() == pytest.approx(1 - 2 * 0.3 / (0.6 + 1))
    both = losses_of_items(logits, torch.tensor([[1, 2]]), exclusive=True)["dice"]
    assert both.item() == pytest.approx(1 - (2 * 0.3 / (0.6 + 1) + 2 * 0.5 / (0.7 + 1)) / 2)


def test_regions_by_hand():
    """Sigmoid of ln 3 is 3/4; every region counts, as none is the background."""
    logits = torch.full((1, 2, 2), math.log(3.0))
    mask = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.uint8)
    terms = losses_of_items(logits, mask, exclusive=False)
    assert terms["cross_entropy"].item() == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.75 / (1.5 + 1) + 2 * 1.5 / (1.5 + 2)) / 2)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("ignored", [True, False])
def test_an_item_alone_is_a_batch_of_one(exclusive, ignored):
    """Where every class is present and no smoothing shows, the terms are those of whole batches."""
    logits, label, valid = random_case(size=(6, 7))
    target, counted = (label if exclusive else regions_of(label)), valid if ignored else None
    terms = losses_of_items(logits, target, counted, exclusive=exclusive)
    for item in range(3):
        part = slice(item, item + 1)
        expected = dice_and_cross_entropy(
            logits[part], target[part], None if counted is None else counted[part], exclusive=exclusive,
            batch_dice=False,
        )  # fmt: skip
        assert terms["cross_entropy"][item].item() == pytest.approx(expected["cross_entropy"].item(), rel=1e-12)
        assert terms["dice"][item].item() == pytest.approx(expected["dice"].item(), abs=1e-5)


def test_cross_entropy_equals_torchs():
    logits, label, _ = random_case()
    entropy = losses_of_items(logits, label, exclusive=True)["cross_entropy"]
    expected = F.cross_entropy(logits, label, reduction="none").mean((1, 2))
    torch.testing.assert_close(entropy, expected, rtol=1e-12, atol=0)
    binary = losses_of_items(logits, regions_of(label), exclusive=False)["cross_entropy"]
    target = regions_of(label).double()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(binary, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_by_its_formula(exclusive, gamma):
    """Lin et al. 2017: -(1 - p)^gamma log p of the truth's probability p; gamma 0 is cross-entropy."""
    logits, label, _ = random_case()
    if exclusive:
        p = logits.softmax(1).gather(1, label[:, None])[:, 0]
        expected = (-((1 - p) ** gamma) * p.log()).mean((1, 2))
    else:
        p = torch.where(regions_of(label) == 1, logits.sigmoid(), 1 - logits.sigmoid())
        expected = (-((1 - p) ** gamma) * p.log()).mean((1, 2, 3))
    target = label if exclusive else regions_of(label)
    found = losses_of_items(logits, target, exclusive=exclusive, focal_gamma=gamma)["cross_entropy"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_network_that_is_certain_has_a_finite_gradient(exclusive, gamma):
    label = torch.tensor([[0, 1]])
    for sign in (1, -1):
        logits = (sign * 200.0 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])).requires_grad_()
        target = label if exclusive else regions_of(label, 2)
        terms = losses_of_items(logits, target, exclusive=exclusive, focal_gamma=gamma)
        sum(term.sum() for term in terms.values()).backward()
        assert torch.isfinite(logits.grad).all()
        assert all(torch.isfinite(term).all() for term in terms.values())


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradients_equal_finite_differences(exclusive, gamma):
    logits, label, valid = random_case(size=(2, 2))
    target = label if exclusive else regions_of(label)

    def total(values):
        terms = losses_of_items(values, target, valid, exclusive=exclusive, dice_weight=2, focal_gamma=gamma)
        return terms["dice"] + terms["cross_entropy"]

    assert torch.autograd.gradcheck(total, logits.requires_grad_())


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("unannotated", [255, -1, 3])
def test_ignored_voxels_change_neither_value_nor_gradient(exclusive, unannotated):
    logits, label, valid = random_case()
    target = label if exclusive else regions_of(label)
    counted = valid if exclusive else valid[:, None]
    loss = partial(losses_of_items, valid=valid, exclusive=exclusive, focal_gamma=2.0)
    logits.requires_grad_()
    terms = loss(logits, target.where(counted, unannotated))
    (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms.values()), logits)
    assert gradient.movedim(1, -1)[~valid].count_nonzero() == 0
    assert gradient.movedim(1, -1)[valid].count_nonzero() == 3 * valid.sum()
    for name, value in loss(logits.where(valid[:, None], 50.0), target).items():
        torch.testing.assert_close(value, terms[name], rtol=1e-12, atol=1e-12)


@pytest.mark.fault("F95")
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("counted", [None, True, False])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_item_without_foreground_is_finite_and_leaves_the_others_alone(exclusive, counted, gamma):
    logits, label, _ = random_case()
    label[1] = 0
    target = label if exclusive else regions_of(label).clone()
    if not exclusive:
        target[1] = 0
    valid = None if counted is None else torch.ones(label.shape, dtype=torch.bool)
    if valid is not None:
        valid[1] = counted
    logits.requires_grad_()
    terms = losses_of_items(logits, target, valid, exclusive=exclusive, focal_gamma=gamma)
    (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms.values()), logits)
    assert torch.isfinite(gradient).all()
    assert terms["dice"][1] == 0
    assert (terms["cross_entropy"][1] == 0) == (counted is False)
    others = losses_of_items(logits[[0, 2]], target[[0, 2]], exclusive=exclusive, focal_gamma=gamma)
    for name, value in others.items():
        torch.testing.assert_close(terms[name][[0, 2]], value, rtol=1e-12, atol=0)
