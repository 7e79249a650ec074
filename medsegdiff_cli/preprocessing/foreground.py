"""What training needs to know about a label beside its voxels: counts, slices and a sample of coordinates."""

import math

import numpy as np

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import ANNOTATED

# nnU-Net's numbers: enough voxels of small structures, a bounded share of large ones.
_VOXELS_PER_CLASS = 10_000
_SHARE_PER_CLASS = 0.01


def scored_classes(scheme: LabelScheme) -> dict[int, tuple[int, ...]]:
    """Return the inner label indices of each foreground class (its own), or of each region, by class index."""
    if scheme.regions is not None:
        return dict(enumerate(scheme.regions))
    return {index: (index,) for index in range(1, len(scheme.values))}


def n_sampled_voxels(n_voxels: int) -> int:
    """Return how many coordinates of a class are kept."""
    return max(min(_VOXELS_PER_CLASS, n_voxels), math.ceil(_SHARE_PER_CLASS * n_voxels))


def foreground_table(label: np.ndarray, scheme: LabelScheme, seed: int) -> np.ndarray:
    """Sample voxels of every class without replacement.

    Args:
        label: (*grid) of inner indices.
        seed: of the sample.

    Returns:
        int32 (n, 1 + axes): class index and coordinates, grouped by class. With an ignore label the pseudo class
        `ANNOTATED` samples all annotated voxels.
    """
    rng = np.random.default_rng(seed)
    tables = []
    if scheme.ignore_value is not None:
        tables.append(_sample(label != scheme.ignore_index, ANNOTATED, rng))
    for index, members in scored_classes(scheme).items():
        tables.append(_sample(np.isin(label, members), index, rng))
    return np.concatenate(tables) if tables else np.zeros((0, 1 + label.ndim), dtype=np.int32)


def class_voxels(label: np.ndarray, scheme: LabelScheme) -> dict[str, int]:
    """Return the number of voxels of each foreground class or region, by name."""
    counts = np.bincount(label.ravel(), minlength=scheme.ignore_index + 1)
    members = scored_classes(scheme).values()
    return {
        name: int(sum(counts[i] for i in part)) for name, part in zip(scheme.foreground_names, members, strict=True)
    }


def foreground_slices(label: np.ndarray, scheme: LabelScheme) -> list[int]:
    """Return the indices along the first axis at which any foreground lies."""
    members = sorted({index for part in scored_classes(scheme).values() for index in part})
    return [index for index, plane in enumerate(label) if np.isin(plane, members).any()]


def _sample(is_member: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray:
    voxels = np.flatnonzero(is_member)
    chosen = np.sort(rng.choice(len(voxels), n_sampled_voxels(len(voxels)), replace=False)) if len(voxels) else []
    coordinates = np.unravel_index(voxels[chosen], is_member.shape) if len(voxels) else [[]] * is_member.ndim
    return np.stack([np.full(len(chosen), index), *coordinates], axis=1).astype(np.int32)
