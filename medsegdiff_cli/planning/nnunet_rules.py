"""nnU-Net's planning rules as functions: target spacing, transpose, median shape, network topology and patch loop.

Source: Isensee et al., nnU-Net, Nature Methods 2021 (supplement, "rule-based parameters") and the behaviour of its
version 2. The cost of a patch is an argument, so that the same loop runs on nnU-Net's own estimate and on memory that
was measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medsegdiff_cli.errors import ResourceError

ANISOTROPY_THRESHOLD = 3.0
SMALLEST_BOTTLENECK_EDGE = 4
DATASET_SHARE_OF_A_BATCH = 0.05
SMALLEST_BATCH = 2
LARGEST_PATCH_EDGE = {2: 2048, 3: 256}
MASK_BELOW_RELATIVE_SIZE = 0.75

Shape = tuple[int, ...]
Strides = tuple[Shape, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training step costs, and how much there is.

    Attributes:
        of: (patch, batch, strides) to cost; it should grow about linearly with the batch.
        budget: in the same unit.
        rounding: from the batch that would exactly use the budget up to a whole number (nnU-Net rounds to nearest).
    """

    of: Callable[[Shape, int, Strides], float]
    budget: float
    rounding: Callable[[float], int] = math.floor


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Downsampling that suits a patch.

    Attributes:
        strides: one entry a transition (without the first stage's 1s).
        kernels: convolution kernel of every stage, bottleneck last.
        patch: the patch, padded up to be divisible by the strides' product.
    """

    strides: Strides
    kernels: Strides
    patch: Shape

    @property
    def divisor(self) -> Shape:
        """Product of the strides per axis."""
        return divisor_of(self.strides, len(self.patch))


@dataclass(frozen=True, kw_only=True)
class PatchPlan:
    """Result of the patch loop; `uncapped_batch` is the batch before the cap of 5 % of the dataset's voxels."""

    topology: Topology
    batch: int
    uncapped_batch: int
    cost_of_one: float


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the median spacing; along the coarse axis of very anisotropic volumes the 10th percentile instead.

    Args:
        spacings, shapes: per case, spatial axes in array order, shapes after the non-zero crop.
    """
    all_spacings = np.asarray(spacings, dtype=float)
    target = np.percentile(all_spacings, 50, axis=0)
    if len(target) == 2:
        return tuple(target.tolist())
    size = np.percentile(np.asarray(shapes, dtype=float), 50, axis=0)
    coarse = int(np.argmax(target))
    fine = [axis for axis in range(len(target)) if axis != coarse]
    has_coarse_spacing = target[coarse] > ANISOTROPY_THRESHOLD * max(target[fine])
    has_few_voxels = size[coarse] * ANISOTROPY_THRESHOLD < min(size[fine])
    if has_coarse_spacing and has_few_voxels:
        tenth = float(np.percentile(all_spacings[:, coarse], 10))
        # The coarse axis must stay the coarsest, since the transpose relies on it.
        target[coarse] = tenth if tenth >= max(target[fine]) else max(target[fine]) + 1e-5
    return tuple(target.tolist())


def transpose_for(spacing: Sequence[float]) -> Shape:
    """Return the axis order with the coarsest axis first; images of two axes keep theirs."""
    if len(spacing) == 2:
        return (0, 1)
    coarse = int(np.argmax(spacing))
    return (coarse, *(axis for axis in range(len(spacing)) if axis != coarse))


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Return the grid of one image after resampling (round half to even, as nnU-Net)."""
    return tuple(round(s / t * n) for n, s, t in zip(shape, spacing, target, strict=True))


def median_shape(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], target: Sequence[float]
) -> tuple[float, ...]:
    """Return the median over cases of the resampled shapes (may end in .5)."""
    new = [resampled_shape(shape, spacing, target) for shape, spacing in zip(shapes, spacings, strict=True)]
    return tuple(np.median(np.array(new), axis=0).tolist())


def topology_for(
    spacing: Sequence[float], patch: Sequence[float], smallest_edge: int = SMALLEST_BOTTLENECK_EDGE
) -> Topology:
    """Choose per-axis strides and kernels: the finest axes are halved first, until an edge would fall below 4."""
    n = len(spacing)
    spacing_now, size_now = [float(s) for s in spacing], [float(edge) for edge in patch]
    kernel = [1] * n
    strides: list[Shape] = []
    kernels: list[Shape] = []
    while axes := _axes_to_halve(spacing_now, size_now, smallest_edge):
        kernel = [3 if k == 3 or s < 2 * min(spacing_now) else 1 for k, s in zip(kernel, spacing_now, strict=True)]
        for axis in axes:
            spacing_now[axis] *= 2
            size_now[axis] = math.ceil(size_now[axis] / 2)
        strides.append(tuple(2 if axis in axes else 1 for axis in range(n)))
        kernels.append(tuple(kernel))
    divisor = divisor_of(strides, n)
    padded = tuple(math.ceil(edge / d) * d for edge, d in zip(patch, divisor, strict=True))
    return Topology(strides=tuple(strides), kernels=(*kernels, (3,) * n), patch=padded)


def divisor_of(strides: Sequence[Sequence[int]], n_dims: int) -> Shape:
    """Return the product of strides per axis; 1s when there are none."""
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(n_dims))


def initial_patch(spacing: Sequence[float], median: Sequence[float]) -> tuple[float, ...]:
    """Return a patch with equal physical edges of 256^3 voxels (2048^2 in 2D), clipped to the median shape.

    Edges may end in .5 as medians do; `topology_for` pads them up.
    """
    n = len(spacing)
    inverse = 1 / np.asarray(spacing, dtype=float)
    edges = inverse * (float(LARGEST_PATCH_EDGE[n]) ** n / np.prod(inverse)) ** (1 / n)
    return tuple(min(float(round(edge)), m) for edge, m in zip(edges.tolist(), median, strict=True))


def plan_patch(
    spacing: Sequence[float],
    median: Sequence[float],
    dataset_voxels: float,
    cost: Cost,
) -> PatchPlan:
    """Shrink the patch until a batch of 2 fits, then fill the budget with the batch.

    The axis whose patch covers most of the median shape is shortened, by one divisor at a time.

    Args:
        spacing, median: of the axes that the network sees.
        dataset_voxels: voxels of the whole training set after resampling; a batch covers 5 % of them at most.

    Raises:
        ResourceError: not even the smallest patch fits.
    """
    topology = topology_for(spacing, initial_patch(spacing, median))
    while cost.of(topology.patch, SMALLEST_BATCH, topology.strides) > cost.budget:
        topology = _shrink(topology, spacing, median)
    one = cost.of(topology.patch, 1, topology.strides)
    per_item = max(cost.of(topology.patch, 2, topology.strides) - one, 1e-9)
    uncapped = cost.rounding((cost.budget - (one - per_item)) / per_item)
    cap = round(dataset_voxels * DATASET_SHARE_OF_A_BATCH / math.prod(topology.patch))
    batch = max(min(uncapped, cap), SMALLEST_BATCH)
    return PatchPlan(topology=topology, batch=batch, uncapped_batch=uncapped, cost_of_one=one)


def _axes_to_halve(spacing: list[float], size: list[float], smallest_edge: int) -> list[int]:
    """Return the axes that are long enough and whose spacing is less than twice the finest one's."""
    long_enough = [axis for axis, edge in enumerate(size) if edge >= 2 * smallest_edge]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    axes = [axis for axis in long_enough if spacing[axis] < 2 * finest]
    # nnU-Net asks more of a lone axis.
    return [] if len(axes) == 1 and size[axes[0]] < 3 * smallest_edge else axes


def _shrink(topology: Topology, spacing: Sequence[float], median: Sequence[float]) -> Topology:
    cover = [edge / m for edge, m in zip(topology.patch, median, strict=True)]
    for axis in reversed(np.argsort(cover).tolist()):
        reduced = list(topology.patch)
        reduced[axis] -= topology.divisor[axis]
        if reduced[axis] <= 0:
            continue
        # The divisor of the reduced patch decides how much is taken away, so that one step never overshoots.
        patch = list(topology.patch)
        patch[axis] -= topology_for(spacing, reduced).divisor[axis]
        shrunk = topology_for(spacing, patch)
        if math.prod(shrunk.patch) < math.prod(topology.patch):
            return shrunk
    raise ResourceError(
        f"a patch of {' x '.join(map(str, topology.patch))} voxels does not fit and cannot be made smaller",
        where="--memory",
        fix="give more memory (--memory), or choose a smaller network (--scale)",
    )
