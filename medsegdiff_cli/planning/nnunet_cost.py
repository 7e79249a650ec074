"""nnU-Net's own estimate of a training step's memory: output voxels times channels over all convolutions.

It is not in bytes; the reference values are the estimates of a network that fits 8 GB with the reference batch.
"""

import math
from collections.abc import Sequence

from medsegdiff_cli.planning.nnunet_rules import Cost, Shape, Strides

REFERENCE_ESTIMATE = {2: 85e6, 3: 560e6}
REFERENCE_BATCH = {2: 12, 3: 2}
REFERENCE_MEMORY_GB = 8.0
BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
CONVOLUTIONS_PER_STAGE = 2


def estimate(patch: Sequence[int], strides: Sequence[Sequence[int]], n_classes: int) -> int:
    """Return nnU-Net's estimate for one patch of a plain U-Net with two convolutions a stage.

    Args:
        n_classes: output channels, background included.
    """
    n = len(patch)
    size = tuple(patch)
    voxels = [math.prod(size)]
    for stride in strides:
        size = tuple(edge // s for edge, s in zip(size, stride, strict=True))
        voxels.append(math.prod(size))
    features = [min(BASE_FEATURES * 2**stage, MAX_FEATURES[n]) for stage in range(len(voxels))]
    encoder = sum(CONVOLUTIONS_PER_STAGE * f * v for f, v in zip(features, voxels, strict=True))
    # Decoder stages hold their convolutions and the transposed convolution that feeds them.
    decoder = sum((CONVOLUTIONS_PER_STAGE + 1) * f * v for f, v in zip(features[:-1], voxels[:-1], strict=True))
    return encoder + decoder + (n_classes * voxels[0] if strides else 0)


def nnunet_cost(n_dims: int, n_classes: int, memory_gb: float = REFERENCE_MEMORY_GB) -> Cost:
    """Return nnU-Net's cost function with its budget for `memory_gb`."""

    def cost_of(patch: Shape, batch: int, strides: Strides) -> float:
        return estimate(patch, strides, n_classes) * batch / REFERENCE_BATCH[n_dims]

    return Cost(of=cost_of, budget=REFERENCE_ESTIMATE[n_dims] * memory_gb / REFERENCE_MEMORY_GB, rounding=round)
