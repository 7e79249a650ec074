"""STAPLE: the label map that explains best what all members say, weighing each by how well it does (Warfield 2004).

Every member m has a confusion matrix theta_m[d, l]: how often it says d where the truth is l. Expectation
maximisation finds the matrices and the probability of each label in each voxel together. Voxels that all members label
in the same way have the same probabilities, so the sums run over the different ways, not over the voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Below this change of every confusion matrix the search has ended.
_TOLERANCE = 1e-6
_MOST_ITERATIONS = 200
# What a member has never been seen to say is rare, not impossible.
_SMALLEST_CHANCE = 1e-12


class Members(Protocol):
    """Label maps (*grid) of integers from 0, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Tensor: ...


@dataclass(frozen=True)
class StapleResult:
    """What the members say together.

    Attributes:
        probabilities: of each label, float32 (label, *grid).
        confusion: float64 (member, said, true); the columns of true labels that exist sum to one.
    """

    probabilities: Tensor
    confusion: Tensor


@dataclass(frozen=True)
class _Patterns:
    """The different ways in which voxels are labelled.

    Attributes:
        said: label by each member, int64 (member, pattern); the first `n_labels` patterns are those of full agreement.
        counts: voxels of each, float64 (pattern,).
        disputed: flat numbers of the voxels on which members differ; pattern_of: their patterns.
    """

    said: Tensor
    counts: Tensor
    disputed: Tensor
    pattern_of: Tensor


def staple(members: Members, n_labels: int) -> StapleResult:
    """Fuse label maps; the labels' frequencies over all members are the prior.

    Args:
        members: at least one, all of the same shape.
        n_labels: labels are 0 ... n_labels - 1.
    """
    patterns = _patterns(members, n_labels)
    said, counts = patterns.said, patterns.counts
    votes = torch.stack([(said == label).sum(0) for label in range(n_labels)]).double()
    prior = votes @ counts / (len(said) * counts.sum())
    # As ITK's multi-label filter: begin with each member's confusion with the vote, ties shared.
    weight = (votes == votes.max(0).values).double()
    weight /= weight.sum(0)
    confusion = _confusion(said, weight * counts, n_labels)
    for _ in range(_MOST_ITERATIONS):
        weight = _weights(said, confusion, prior)
        before, confusion = confusion, _confusion(said, weight * counts, n_labels)
        if float((confusion - before).abs().max()) < _TOLERANCE:
            break
    probabilities = _to_voxels(weight.float(), members[0], patterns)
    return StapleResult(probabilities, confusion)


def _patterns(members: Members, n_labels: int) -> _Patterns:
    first = members[0].reshape(-1)
    differs = torch.zeros(first.shape, dtype=torch.bool)
    for number in range(1, len(members)):
        differs |= members[number].reshape(-1) != first
    disputed = differs.nonzero()[:, 0]
    opinions = torch.stack([members[number].reshape(-1)[disputed] for number in range(len(members))])
    said, pattern_of, counts = opinions.unique(dim=1, return_inverse=True, return_counts=True)
    agreed = torch.arange(n_labels).expand(len(members), -1)
    even = torch.bincount(first[~differs].long(), minlength=n_labels)
    return _Patterns(
        said=torch.cat([agreed, said.long()], 1),
        counts=torch.cat([even, counts]).double(),
        disputed=disputed,
        pattern_of=pattern_of + n_labels,
    )


def _weights(said: Tensor, confusion: Tensor, prior: Tensor) -> Tensor:
    """Return the probability of each label in each pattern, (label, pattern) (Eq. 15)."""
    chances = confusion.clamp(min=_SMALLEST_CHANCE).log()
    joint = prior.clamp(min=_SMALLEST_CHANCE).log()[:, None].repeat(1, said.shape[1])
    for chance, label in zip(chances, said, strict=True):
        joint += chance[label].T
    return joint.softmax(0)


def _confusion(said: Tensor, mass: Tensor, n_labels: int) -> Tensor:
    """Return each member's confusion matrix, (member, said, true), from the mass of true labels (Eq. 18 and 19)."""
    matrices = []
    for label in said:
        matrices.append(torch.zeros(n_labels, n_labels, dtype=mass.dtype).index_add_(0, label, mass.T))
    confusion = torch.stack(matrices)
    return confusion / confusion.sum(1, keepdim=True).clamp(min=_SMALLEST_CHANCE)


def _to_voxels(weight: Tensor, first: Tensor, patterns: _Patterns) -> Tensor:
    flat = first.reshape(-1).long()
    rows: Sequence[Tensor] = [row[flat] for row in weight[:, : len(weight)]]
    for row, of_patterns in zip(rows, weight, strict=True):
        row[patterns.disputed] = of_patterns[patterns.pattern_of]
    return torch.stack(list(rows)).reshape(len(weight), *first.shape)
