"""Where a training patch lies, and how it is cut out of a memory-mapped case.

A position may stick out of the grid when the grid is smaller than the patch; what lies outside is 0 (background).
"""

from dataclasses import dataclass

import numpy as np

from medsegdiff_cli.artifacts.preprocessed_store import ANNOTATED, StoredCase


@dataclass(frozen=True, kw_only=True)
class OpenCase:
    """A stored case and where the coordinates of each class stand in its foreground table.

    Attributes:
        rows: class index to (first, last + 1) row of `stored.foreground`; classes without voxels are absent.
    """

    stored: StoredCase
    rows: dict[int, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class PatchPosition:
    """The corner of a patch.

    Attributes:
        start: first voxel per patch axis; negative where the patch begins outside of the grid.
        slice_index: slice along the first axis of a 3D grid that a 2D patch is cut from, else None.
    """

    start: tuple[int, ...]
    slice_index: int | None = None


def index_foreground(stored: StoredCase) -> OpenCase:
    """Find the rows of each class in the foreground table, whose rows are grouped by class."""
    rows: dict[int, tuple[int, int]] = {}
    if stored.foreground is not None and len(stored.foreground):
        classes, first, counts = np.unique(stored.foreground[:, 0], return_index=True, return_counts=True)
        rows = {int(c): (int(f), int(f + n)) for c, f, n in zip(classes, first, counts, strict=True)}
    return OpenCase(stored=stored, rows=rows)


def is_forced_foreground(position: int, batch_size: int, foreground_share: float) -> bool:
    """Tell whether the patch at `position` of the global batch is centred on foreground: the last ones are."""
    return position >= batch_size - round(batch_size * foreground_share)


def choose_patch(
    case: OpenCase,
    patch_size: tuple[int, ...],
    rng: np.random.Generator,
    *,
    force_foreground: bool,
    slices_2d: bool = False,
    drop_empty_slices: bool = False,
) -> PatchPosition:
    """Draw the position of a patch.

    A forced patch is centred on a uniform voxel of a class that is uniform among the classes of the case. Otherwise
    the position is uniform; where only some voxels are annotated, it is centred on one of those. Both stay inside of
    the grid where the grid is large enough.

    Args:
        slices_2d: cut a 2D patch out of one slice of a 3D grid.
        drop_empty_slices: take slices with foreground only (where the case has any).
    """
    grid = case.stored.image.shape[1:]
    slices = case.stored.properties.get("foreground_slices") if slices_2d and drop_empty_slices else None
    centre = _centre_voxel(case, rng, force_foreground, slices)
    slice_index = None
    if slices_2d:
        slice_index = centre[0] if centre else int(rng.choice(slices)) if slices else int(rng.integers(grid[0]))
        grid, centre = grid[1:], centre[1:] if centre else None
    start = []
    for axis, (edge, extent) in enumerate(zip(patch_size, grid, strict=True)):
        if edge >= extent:
            start.append(-((edge - extent) // 2))
        elif centre is None:
            start.append(int(rng.integers(extent - edge + 1)))
        else:
            start.append(min(max(centre[axis] - edge // 2, 0), extent - edge))
    return PatchPosition(start=tuple(start), slice_index=slice_index)


def _centre_voxel(
    case: OpenCase, rng: np.random.Generator, force_foreground: bool, slices: list[int] | None
) -> tuple[int, ...] | None:
    classes = [index for index in case.rows if index != ANNOTATED]
    foreground = case.stored.foreground
    if foreground is None or not case.rows:
        return None
    if force_foreground and classes:
        first, end = case.rows[classes[int(rng.integers(len(classes)))]]
        candidates = foreground[first:end]
    elif ANNOTATED in case.rows:
        first, end = case.rows[ANNOTATED]
        candidates = foreground[first:end]
        if slices:
            candidates = candidates[np.isin(candidates[:, 1], slices)]
    else:
        return None
    if not len(candidates):
        return None
    return tuple(int(c) for c in candidates[int(rng.integers(len(candidates))), 1:])


def cut(array: np.ndarray, start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """Copy a box out of `array`, 0 where the box sticks out; reads only what it covers.

    Args:
        array: (channel, *spatial).
        start: first voxel per spatial axis, may be negative.
        size: edges of the box.

    Returns:
        (channel, *size), of the dtype of `array`.
    """
    box = np.zeros((array.shape[0], *size), dtype=array.dtype)
    source, target = [slice(None)], [slice(None)]
    for first, edge, extent in zip(start, size, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + edge, extent)
        if high <= low:
            return box
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    box[tuple(target)] = array[tuple(source)]
    return box
