"""The channels of one case: read from one file or one file each, and put on one grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import collapse_grey, read_image

_LARGEST_SHIFT_VOXELS = 0.1


def read_channels(paths: Sequence[Path], n_channels: int | None = None) -> Image:
    """Read the files of a case as one image (channel, *spatial) on the first file's grid.

    Grey images saved as RGB are collapsed when one channel is expected; 4-D NIfTI files give channels.

    Args:
        n_channels: channels that the case must have; None takes what there is.

    Raises:
        InputDataError: unreadable files, other channel counts, or channels whose corners are more than a tenth of a
            voxel apart.
    """
    images = [read_image(path, channels_last_axis=len(paths) == 1) for path in paths]
    first = images[0]
    if len(images) == 1:
        image = collapse_grey(first) if n_channels == 1 else first
    else:
        for path, image in zip(paths[1:], images[1:], strict=True):
            distance = largest_corner_distance_mm(first.geometry, image.geometry)
            if distance > _LARGEST_SHIFT_VOXELS * min(first.geometry.spacing_mm):
                raise InputDataError(
                    f"channels lie on different grids (corners {distance:.3g} mm apart, shapes "
                    f"{first.geometry.shape} and {image.geometry.shape})",
                    where=f"{paths[0]}, {path}",
                    fix="resample the channels to one grid",
                )
        array = np.concatenate([image.array.astype(np.result_type(*(i.array for i in images))) for image in images])
        image = Image(array=array, geometry=first.geometry)
    if n_channels is not None and image.array.shape[0] != n_channels:
        raise InputDataError(
            f"{image.array.shape[0]} channels instead of {n_channels}",
            where=", ".join(str(path) for path in paths),
            fix="give one file per channel (CASE_0000, CASE_0001, ...) in the training's order",
        )
    return image
