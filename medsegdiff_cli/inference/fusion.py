"""Fusion of members: running mean, variance and votes; entropy and agreement. Probabilities of one member at a time."""

from typing import Literal

import torch
from torch import Tensor

from medsegdiff_cli.inference.member_labels import MemberLabels
from medsegdiff_cli.inference.staple import staple

Fusion = Literal["mean", "majority", "staple"]


class RunningFusion:
    """Mean and variance over members by Welford's recursion, votes per class, and each member's label map.

    Args:
        rule: "mean" decides by the mean probabilities, "majority" by the vote of the members' label maps, "staple" by
            how well each member does (see `staple`), for which their label maps are kept.
        exclusive: classes exclude each other (argmax) or overlap (each above 0.5).
        keep_labels: keep the members' label maps, packed, which agreement and `--save-members` need.
        keep_votes: count the members that see each class in each voxel, which `pairwise_dice` needs; one byte a class
            and voxel up to 255 members, four beyond. A majority counts them anyway.
    """

    def __init__(
        self,
        *,
        exclusive: bool,
        keep_variance: bool,
        keep_labels: bool,
        rule: Fusion = "mean",
        keep_votes: bool = False,
    ) -> None:
        self.exclusive, self._keep_variance = exclusive, keep_variance
        self._keep_labels = keep_labels or rule == "staple"
        self.rule, self._keep_votes = rule, keep_votes or rule == "majority"
        self.count = 0
        self.mean = torch.empty(0)
        self._squares = torch.empty(0)
        self._votes = torch.empty(0)
        self.member_labels = MemberLabels()
        self._member_voxels: list[tuple[int, ...]] = []
        self._staple: tuple[int, Tensor] | None = None

    def add(self, probabilities: Tensor) -> None:
        """Add one member (class, *grid); the tensor may be reused by this object."""
        self.count += 1
        if self._keep_labels:
            label = label_map(probabilities, self.exclusive)
            self.member_labels.append(label)
            self._member_voxels.append(_voxels_of(label, len(probabilities), self.exclusive))
        if self.count == 1:
            self.mean = probabilities
            self._squares = torch.zeros_like(probabilities) if self._keep_variance else self._squares
            return
        if self._keep_votes:
            self._count_votes(probabilities)
        # One class at a time: no further array of classes times voxels is needed.
        for index, values in enumerate(probabilities):
            difference = values - self.mean[index]
            self.mean[index] += difference / self.count
            if self._keep_variance:
                self._squares[index] += difference * (values - self.mean[index])

    @property
    def scores(self) -> Tensor:
        """What decides the label map, (class, *grid): the largest score wins, or for regions each one above 0.5.

        They are the mean probabilities p, or for a majority v / M + (p - 1/2) / 2M with v votes of M members. Whole
        votes differ by 1 / M and the second term by no more than half of that, so p decides between equal votes alone.
        With one member the vote is that member's, whose probabilities are the better scores between voxels. For STAPLE
        they are its probabilities.
        """
        if self.rule == "mean" or self.count < 2:
            return self.mean
        if self.rule == "staple":
            return self._staple_scores()
        return self._votes / self.count + (self.mean - 0.5) / (2 * self.count)

    @property
    def variance(self) -> Tensor:
        """Variance over members (divided by their number), (class, *grid); 0 with one member.

        Raises:
            RuntimeError: made without `keep_variance`.
        """
        if not self._keep_variance:
            raise RuntimeError("this fusion keeps no variance")
        return self._squares / self.count

    @property
    def member_voxels(self) -> Tensor:
        """Voxels of each member and class on the grid, int64 (member, class); none without `keep_labels`."""
        return torch.tensor(self._member_voxels, dtype=torch.int64).reshape(len(self._member_voxels), -1)

    def agreement(self) -> float | None:
        """Return the mean over members of the foreground Dice with the fused label map; None with one member.

        Foreground here is any class but the background, and a voxel agrees when its whole label does.
        """
        if len(self.member_labels) < 2:
            return None
        fused = label_map(self.scores, self.exclusive)
        return sum(_label_dice(member, fused) for member in self.member_labels) / len(self.member_labels)

    def pairwise_dice(self) -> tuple[float | None, ...] | None:
        """Return the pooled Dice over all pairs of members, one a class; None with one member.

        It is 2 sum |A and B| / sum (|A| + |B|), both sums over the pairs: 1 when all label maps are equal, 0 when no
        two share a voxel, None for a class that no member sees. With c votes in a voxel, c (c - 1) / 2 pairs share it
        and each vote stands in M - 1 pairs, so it equals sum c (c - 1) / ((M - 1) sum c) over the voxels, exactly.

        Raises:
            RuntimeError: made without `keep_votes`.
        """
        if not self._keep_votes:
            raise RuntimeError("this fusion keeps no votes")
        if self.count < 2:
            return None
        return tuple(_dice_of_votes(votes, self.count) for votes in self._votes)

    def _staple_scores(self) -> Tensor:
        """Return STAPLE's probabilities (class, *grid), computed once for the members so far; regions one by one."""
        if self._staple is None or self._staple[0] != self.count:
            if self.exclusive:
                found = staple(self.member_labels, len(self.mean)).probabilities
            else:
                regions = (_OneRegion(self.member_labels, index) for index in range(len(self.mean)))
                found = torch.stack([staple(region, 2).probabilities[1] for region in regions])
            self._staple = (self.count, found)
        return self._staple[1]

    def _count_votes(self, probabilities: Tensor) -> None:
        """Add a later member's label map to the votes; the first one's is that of the mean so far."""
        if self.count == 2:
            self._votes = torch.zeros(probabilities.shape, dtype=torch.uint8)
            self._vote(self.mean)
        if self.count == 256:
            self._votes = self._votes.to(torch.int32)
        self._vote(probabilities)

    def _vote(self, probabilities: Tensor) -> None:
        winner = probabilities.argmax(0) if self.exclusive else None
        for index, votes in enumerate(self._votes):
            votes += probabilities[index] > 0.5 if winner is None else winner == index


class _OneRegion:
    """The members' masks of one region, from their bit codes."""

    def __init__(self, codes: MemberLabels, index: int) -> None:
        self._codes, self._index = codes, index

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, number: int, /) -> Tensor:
        return ((self._codes[number] >> self._index) & 1).to(torch.uint8)


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


def _voxels_of(label: Tensor, n_classes: int, exclusive: bool) -> tuple[int, ...]:
    """Return the voxels of each class in a `label_map`."""
    if exclusive:
        return tuple(torch.bincount(label.flatten(), minlength=n_classes).tolist())
    return tuple(int(((label >> index) & 1).sum()) for index in range(n_classes))


def _label_dice(first: Tensor, second: Tensor) -> float:
    total = int((first != 0).sum() + (second != 0).sum())
    same = int(((first == second) & (first != 0)).sum())
    return 1.0 if total == 0 else 2 * same / total


def _dice_of_votes(votes: Tensor, members: int) -> float | None:
    """Return the pooled pairwise Dice of one class from its votes per voxel, in whole numbers up to the division."""
    voxels = torch.bincount(votes.flatten(), minlength=1).tolist()
    cast = sum(c * n for c, n in enumerate(voxels))
    shared = sum(c * (c - 1) * n for c, n in enumerate(voxels))
    return None if cast == 0 else shared / ((members - 1) * cast)
