"""Fusion of members: running mean and variance of probabilities, entropy, agreement; one member in memory at a time."""

import torch
from torch import Tensor


class RunningFusion:
    """Mean and variance over members by Welford's recursion, and each member's label map.

    Args:
        exclusive: classes exclude each other (argmax) or overlap (each above 0.5).
        keep_labels: keep the members' label maps, which agreement and `--save-members` need.
    """

    def __init__(self, *, exclusive: bool, keep_variance: bool, keep_labels: bool) -> None:
        self.exclusive, self._keep_variance, self._keep_labels = exclusive, keep_variance, keep_labels
        self.count = 0
        self.mean = torch.empty(0)
        self._squares = torch.empty(0)
        self.member_labels: list[Tensor] = []

    def add(self, probabilities: Tensor) -> None:
        """Add one member (class, *grid); the tensor may be reused by this object."""
        self.count += 1
        if self._keep_labels:
            self.member_labels.append(label_map(probabilities, self.exclusive))
        if self.count == 1:
            self.mean = probabilities
            self._squares = torch.zeros_like(probabilities) if self._keep_variance else self._squares
            return
        difference = probabilities - self.mean
        self.mean = self.mean + difference / self.count
        if self._keep_variance:
            self._squares += difference * (probabilities - self.mean)

    @property
    def variance(self) -> Tensor:
        """Variance over members (divided by their number), (class, *grid); 0 with one member.

        Raises:
            RuntimeError: made without `keep_variance`.
        """
        if not self._keep_variance:
            raise RuntimeError("this fusion keeps no variance")
        return self._squares / self.count

    def agreement(self) -> float | None:
        """Return the mean over members of the foreground Dice with the fused label map; None with one member.

        Foreground here is any class but the background, and a voxel agrees when its whole label does.
        """
        if len(self.member_labels) < 2:
            return None
        fused = label_map(self.mean, self.exclusive)
        return sum(_label_dice(member, fused) for member in self.member_labels) / len(self.member_labels)


def label_map(probabilities: Tensor, exclusive: bool) -> Tensor:
    """Return (*grid) argmax when exclusive, else a bit code of the classes above 0.5 (bit k for class k).

    The dtype is uint8 with up to 256 classes or 8 regions.
    """
    if exclusive:
        return probabilities.argmax(0).to(torch.uint8 if probabilities.shape[0] <= 256 else torch.int32)
    bits = 2 ** torch.arange(probabilities.shape[0], device=probabilities.device)
    code = ((probabilities > 0.5).to(torch.int64) * bits.view(-1, *[1] * (probabilities.ndim - 1))).sum(0)
    return code.to(torch.uint8) if probabilities.shape[0] <= 8 else code


def entropy(probabilities: Tensor, exclusive: bool) -> Tensor:
    """Return the entropy in nats, (*grid): of the class distribution, or the mean over regions of each one's own.

    It lies between 0 and ln(classes) (ln 2 for regions).
    """
    p = probabilities.clamp(0, 1)
    entr = torch.special.entr  # -p ln p, 0 at p = 0
    return entr(p).sum(0) if exclusive else (entr(p) + entr(1 - p)).mean(0)


def _label_dice(first: Tensor, second: Tensor) -> float:
    total = int((first != 0).sum() + (second != 0).sum())
    same = int(((first == second) & (first != 0)).sum())
    return 1.0 if total == 0 else 2 * same / total
