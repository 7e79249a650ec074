"""File ending: the one lossless ending that all files of a dataset get."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.reading import ending_of, read_image
from medsegdiff_cli.imaging.writing import LOSSLESS_ENDINGS

PHOTO_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_TIFF_ENDINGS = (".tif", ".tiff")
# A .mhd keeps its voxels in a second file, which a one-ending dataset cannot hold.
_WRITABLE = tuple(ending for ending in LOSSLESS_ENDINGS if ending != ".mhd")


def choose_file_ending(images: Sequence[Path], asked: str | None) -> str:
    """Return ".png" for photographs, ".nii.gz" for volumes, ".tif" for flat TIFF files that PNG cannot hold.

    Raises:
        UsageError: the ending asked for is lossy or unknown.
        InputDataError: photographs and volumes in one source.
    """
    if asked:
        ending = asked.lower() if asked.startswith(".") else f".{asked.lower()}"
        if ending not in _WRITABLE:
            raise UsageError(
                f"file ending '{asked}' cannot be used", where="--file-ending", fix=f"one of {', '.join(_WRITABLE)}"
            )
        return ending
    kinds = {_kind_of(image) for image in images}
    if {"photo", "volume"} <= kinds:
        photo = next(image for image in images if _kind_of(image) == "photo")
        volume = next(image for image in images if _kind_of(image) == "volume")
        raise InputDataError(
            "photographs and volumes in one source",
            where=f"{photo} and {volume}",
            fix="convert them one after the other into two datasets (--images)",
        )
    tiffs = [image for image in images if _kind_of(image) == "tiff"]
    if not tiffs:
        return ".png" if "photo" in kinds else ".nii.gz"
    first = read_image(tiffs[0])
    if first.geometry.n_dims == 3 or "volume" in kinds:
        return ".nii.gz"
    fits_png = first.array.dtype in (np.uint8, np.uint16) and first.array.shape[0] in (1, 3)
    return ".png" if fits_png else ".tif"


def _kind_of(image: Path) -> str:
    ending = ending_of(image)
    return "photo" if ending in PHOTO_ENDINGS else "tiff" if ending in _TIFF_ENDINGS else "volume"
