"""Nearest images: whether generated images are copies of training images.

Images are compared as small pictures by their correlation, so brightness and contrast do not count. How near is too
near is told by the training images themselves: by how near each is to the nearest of the others. (That distances mean
something only relative to those between real images is argued by Carlini et al. 2023, Extracting Training Data from
Diffusion Models; their criterion is another one.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 256
# Edge of the small pictures, by number of spatial axes.
SIDE = {2: 64, 3: 32}


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Return the image (channel, *spatial) with at most `side` voxels an axis, as means over blocks; float32."""
    small: np.ndarray = np.asarray(image, dtype=np.float32)
    for axis in range(1, small.ndim):
        length = small.shape[axis]
        if length > side:
            edges = np.linspace(0, length, side + 1).round().astype(int)
            sums = np.add.reduceat(small, edges[:-1], axis=axis)
            shape = [-1 if other == axis else 1 for other in range(small.ndim)]
            small = sums / np.diff(edges).astype(np.float32).reshape(shape)
    return small


def signature(image: np.ndarray) -> np.ndarray:
    """Return what an image (channel, *spatial) is compared by, float32 (features,).

    The product of two signatures is the correlation of the images, averaged over channels; a constant channel
    correlates with nothing.
    """
    small = thumbnail(image, SIDE[image.ndim - 1]).reshape(image.shape[0], -1)
    centred = small - small.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    # What is left of a constant channel is rounding.
    varies = length > 1e-6 * (1 + np.abs(small).max(axis=1, keepdims=True)) * np.sqrt(small.shape[1])
    unit = np.where(varies, centred / np.where(varies, length, 1), 0) / np.sqrt(len(small))
    features: np.ndarray = unit.ravel().astype(np.float32)
    return features


def mirrored(signatures: np.ndarray, shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Return signatures of images and of all their mirror images, (image, version, features).

    Args:
        signatures: (image, features).
        shape: (channel, *spatial) of the images.
        axes: spatial axes (0 first) along which images are mirrored.
    """
    side = SIDE[len(shape) - 1]
    pictures = signatures.reshape(-1, shape[0], *(min(edge, side) for edge in shape[1:]))
    versions = [pictures]
    for axis in axes:
        versions += [np.flip(version, axis + 2) for version in versions]
    return np.stack([version.reshape(len(signatures), -1) for version in versions], axis=1)


@dataclass(frozen=True)
class Neighbours:
    """The nearest of some references to each query.

    Attributes:
        index: of the reference, int (query,); -1 where there was none to compare with.
        distance: 1 - correlation, from 0 (a copy) to 2, float (query,); infinite where there was none.
    """

    index: np.ndarray
    distance: np.ndarray


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    *,
    query_groups: Sequence[int] | None = None,
    reference_groups: Sequence[int] | None = None,
) -> Neighbours:
    """Return the nearest reference to each query, in whichever of the query's versions.

    Args:
        queries: signatures (query, version, features).
        references: signatures (reference, features).
        query_groups, reference_groups: a query is not compared with references of its own group.
    """
    n = len(queries)
    index, distance = np.full(n, -1), np.full(n, np.inf)
    if not len(references):
        return Neighbours(index, distance)
    for start in range(0, n, _BLOCK):
        block = queries[start : start + _BLOCK]
        correlation = np.max([block[:, version] @ references.T for version in range(block.shape[1])], axis=0)
        if query_groups is not None and reference_groups is not None:
            own = np.asarray(query_groups)[start : start + _BLOCK, None] == np.asarray(reference_groups)[None]
            correlation[own] = -np.inf
        best = correlation.argmax(axis=1)
        found = correlation[np.arange(len(block)), best]
        index[start : start + _BLOCK] = np.where(np.isfinite(found), best, -1)
        distance[start : start + _BLOCK] = np.where(np.isfinite(found), np.maximum(1 - found.astype(float), 0), np.inf)
    return Neighbours(index, distance)
