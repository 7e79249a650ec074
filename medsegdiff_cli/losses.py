"""Losses: Dice and cross-entropy for exclusive classes and for overlapping regions, with ignored voxels; NT-Xent.

All are pure functions, computed in float32 at least (also under autocast), and finite when a class is absent or
every voxel is ignored. Ignored voxels have exactly zero gradient. Dice follows nnU-Net (Isensee et al. 2021) with
its smoothing in numerator and denominator: an absent class scores near 1 only when next to nothing is predicted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_dice(
    probabilities: Tensor,
    mask: Tensor,
    valid: Tensor | None = None,
    *,
    batch_dice: bool,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """Return the mean soft Dice coefficient, 2 |P M| / (|P| + |M|), a scalar between 0 and 1; its loss is 1 minus it.

    Args:
        probabilities: (batch, class, *spatial) in [0, 1].
        mask: (batch, class, *spatial), one-hot classes or regions, any type.
        valid: bool (batch, *spatial) or (batch, 1, *spatial), False where voxels do not count; None: all count.
        batch_dice: sum over the batch before dividing, so that small patches share one coefficient a class.
        include_background: count channel 0; it is left out when the only other channels are classes beside it.
        smooth: added to numerator and denominator, in voxels.

    Raises:
        ValueError: there is no channel beside the background.
    """
    first = 0 if include_background else 1
    if probabilities.shape[1] <= first:
        raise ValueError(f"Dice without background needs 2 or more classes, not {probabilities.shape[1]}")
    p, m = _exact(probabilities)[:, first:], mask[:, first:]
    if valid is not None:
        counted = _with_channel(valid, probabilities)
        p, m = p.where(counted, 0), m.where(counted, 0)
    m = m.to(p.dtype)
    axes = ([0] if batch_dice else []) + list(range(2, p.ndim))
    overlap, total = (p * m).sum(axes), p.sum(axes) + m.sum(axes)
    return ((2 * overlap + smooth) / (total + smooth)).mean()


def cross_entropy(logits: Tensor, label: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the voxels that count, in nats; 0 when there is none.

    Args:
        logits: (batch, class, *spatial).
        label: int64 (batch, *spatial) class indices; any value where `valid` is False.
        valid: bool (batch, *spatial) or (batch, 1, *spatial); None: all count.
    """
    if valid is None:
        return F.cross_entropy(_exact(logits), label)
    counted = valid.reshape(label.shape)
    total = F.cross_entropy(_exact(logits), label.where(counted, -100), ignore_index=-100, reduction="sum")
    return total / counted.sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean over regions and voxels that count of the binary cross-entropy, in nats; 0 when there is none.

    Args:
        logits: (batch, region, *spatial).
        mask: (batch, region, *spatial) of 0 and 1; any value where `valid` is False.
        valid: bool (batch, *spatial) or (batch, 1, *spatial); None: all count.
    """
    exact = _exact(logits)
    if valid is None:
        return F.binary_cross_entropy_with_logits(exact, mask.to(exact.dtype))
    counted = _with_channel(valid, logits)
    terms = F.binary_cross_entropy_with_logits(exact, mask.where(counted, 0).to(exact.dtype), reduction="none")
    return terms.where(counted, 0).sum() / (counted.sum() * logits.shape[1]).clamp(min=1)


def dice_and_cross_entropy(
    logits: Tensor,
    label_or_mask: Tensor,
    valid: Tensor | None = None,
    *,
    exclusive: bool,
    batch_dice: bool,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return nnU-Net's loss as its two weighted terms, `dice` (weight x (1 - Dice)) and `cross_entropy`.

    Args:
        logits: (batch, class, *spatial), before softmax (exclusive) or sigmoid (regions).
        label_or_mask: exclusive: int64 (batch, *spatial); regions: (batch, region, *spatial) of 0 and 1.
        valid: bool (batch, *spatial) or (batch, 1, *spatial); None: all count.
        exclusive: classes exclude each other and class 0 is the background, which Dice leaves out.
        batch_dice: see `soft_dice`.
        dice_weight: factor of the Dice term.
        ce_weight: factor of the cross-entropy term.
    """
    exact = _exact(logits)
    if exclusive:
        probabilities, mask = exact.softmax(dim=1), one_hot(label_or_mask, valid, logits.shape[1])
        entropy = cross_entropy(exact, label_or_mask, valid)
    else:
        probabilities, mask = exact.sigmoid(), label_or_mask
        entropy = binary_cross_entropy(exact, mask, valid)
    dice = soft_dice(probabilities, mask, valid, batch_dice=batch_dice, include_background=not exclusive)
    return {"dice": dice_weight * (1 - dice), "cross_entropy": ce_weight * entropy}


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _with_channel(valid: Tensor, like: Tensor) -> Tensor:
    """Return `valid` as (batch, 1, *spatial)."""
    return valid if valid.ndim == like.ndim else valid[:, None]


def one_hot(label: Tensor, valid: Tensor | None, n_classes: int) -> Tensor:
    """Return bool (batch, class, *spatial) of labels (batch, *spatial).

    Labels outside `valid`, which may be no class at all, become class 0.
    """
    known = label if valid is None else label.where(valid.reshape(label.shape), 0)
    shape = (label.shape[0], n_classes, *label.shape[1:])
    return torch.zeros(shape, dtype=torch.bool, device=label.device).scatter_(1, known[:, None], True)


def losses_of_items(
    logits: Tensor,
    label_or_mask: Tensor,
    valid: Tensor | None = None,
    *,
    exclusive: bool,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    focal_gamma: float = 0.0,
) -> dict[str, Tensor]:
    """Return the same two terms for each item of the batch alone, (batch,), for losses that weigh items.

    Dice here is the mean over the classes that an item holds, without the background, and without smoothing: an item
    that holds none has a Dice loss of exactly 0 (Fu et al. 2023 average over present classes, too).

    Args:
        logits, label_or_mask, valid, exclusive: see `dice_and_cross_entropy`.
        focal_gamma: above 0, each voxel's entropy is multiplied by (1 - p)^gamma, p being the probability of the truth
            (Lin et al. 2017).
    """
    exact = _exact(logits)
    axes = tuple(range(1, exact.ndim - 1))
    if exclusive:
        log_p = exact.log_softmax(dim=1)
        mask = one_hot(label_or_mask, valid, logits.shape[1])
        entropy = _focal(-log_p.where(mask, 0).sum(1), focal_gamma)
        probabilities, mask = log_p[:, 1:].exp(), mask[:, 1:]
    else:
        mask = label_or_mask.bool()
        truth = torch.where(mask, exact, -exact)
        entropy = _focal(-F.logsigmoid(truth), focal_gamma).mean(1)
        probabilities = exact.sigmoid()
    counted = torch.ones_like(entropy, dtype=torch.bool) if valid is None else valid.reshape(entropy.shape)
    mean_entropy = entropy.where(counted, 0).sum(axes) / counted.sum(axes).clamp(min=1)
    return {
        "dice": dice_weight * _dice_loss_of_present(probabilities, mask, counted),
        "cross_entropy": ce_weight * mean_entropy,
    }


def _focal(entropy: Tensor, gamma: float) -> Tensor:
    # The smallest number keeps the slope of a root finite where the truth is certain.
    return entropy * (-torch.expm1(-entropy)).clamp(min=1e-30) ** gamma if gamma else entropy


def _dice_loss_of_present(probabilities: Tensor, mask: Tensor, counted: Tensor) -> Tensor:
    """Return 1 - Dice, averaged over each item's present classes, (batch,); 0 for an item without any."""
    p, m = probabilities.where(counted[:, None], 0).flatten(2), (mask & counted[:, None]).flatten(2)
    truth = m.sum(2)
    present = truth > 0
    dice = 2 * p.where(m, 0).sum(2) / (p.sum(2) + truth).where(present, 1)
    return (1 - dice).where(present, 0).sum(1) / present.sum(1).clamp(min=1)


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    positive_in_denominator: bool = True,
    same_view_negatives: bool = True,
) -> Tensor:
    """Return the contrastive loss of two views, a scalar in nats (NT-Xent, Chen et al. 2020, Eq. 1).

    Item i of one view and item i of the other belong together; every other item is told apart from them. With s the
    cosine similarity / temperature, the loss is the mean over all items of both views of log(sum of exp(s)) - s of the
    pair.

    Args:
        first, second: (*group, item, feature), the items of each group being compared with one another; groups
            broadcast. A group of one item, which has nothing to be told apart from, has a loss of 0.
        temperature: above 0.
        positive_in_denominator: the pair itself is part of the sum, as in the paper: the loss is then above 0.
        same_view_negatives: an item is told apart from those of its own view, too (Chen et al.); else from those of
            the other view only (Chaitanya et al. 2020, Eq. 3).
    """
    with torch.autocast(first.device.type, enabled=False):  # rounded similarities over a small temperature are coarse
        one, two = (F.normalize(_exact(view), dim=-1, eps=1e-6) for view in (first, second))
        across = one @ two.transpose(-1, -2) / temperature
        positive = across.diagonal(dim1=-2, dim2=-1)
        if across.shape[-1] == 1:
            return 0 * positive.sum()
        same_item = torch.eye(across.shape[-1], dtype=torch.bool, device=across.device)
        terms = []
        for view, others in ((one, across), (two, across.transpose(-1, -2))):
            compared = [others if positive_in_denominator else others.masked_fill(same_item, -torch.inf)]
            if same_view_negatives:
                within = (view @ view.transpose(-1, -2) / temperature).masked_fill(same_item, -torch.inf)
                compared.append(within.expand_as(others))
            terms.append(torch.cat(compared, -1).logsumexp(-1) - positive)
        return torch.stack(terms).mean()
