"""Measure one case: grid, orientation, crop, class frequencies and intensities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, Part
from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.fingerprinting.intensities import draw_samples, statistics_of
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.crop import box_shape, nonzero_bounding_box
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import read_label

# ITK's axes are left, posterior, superior; the first letter is the end at which the index grows.
_DIRECTION_CODES = (("L", "R"), ("P", "A"), ("S", "I"))

# Part of the cache key: raise it when what is measured changes.
MEASUREMENT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A case's fingerprint and its samples (channel, sample) of foreground, mask and whole image."""

    fingerprint: CaseFingerprint
    foreground: np.ndarray
    mask: np.ndarray
    whole: np.ndarray


def digest_of_case(files: CaseFiles, scheme: LabelScheme) -> str:
    """Return the cache key: the content of all files of the case, and the meaning of label values."""
    optional = {"label": files.label, "mask": files.mask}
    content = {
        "images": [atomic.digest_of_file(path) for path in files.images],
        **{name: atomic.digest_of_file(path) for name, path in optional.items() if path is not None},
        "version": MEASUREMENT_VERSION,
        "scheme": [scheme.class_names, scheme.values, scheme.regions, scheme.ignore_value],
    }
    return atomic.digest_of_content(content)


def measure_case(files: CaseFiles, part: Part, n_channels: int, scheme: LabelScheme, digest: str) -> Measured:
    """Measure one case.

    Raises:
        InputDataError: unreadable or contradictory files.
    """
    image = read_channels(files.images, n_channels)
    label = _read_on_grid(files, image, scheme) if part == "Tr" else None
    voxels = image.array.reshape(n_channels, -1)
    class_masks = {} if label is None else masks_of_classes(label, scheme)
    fingerprint = CaseFingerprint(
        case=files.case,
        part=part,
        digest=digest,
        shape_voxels=image.geometry.shape,
        shape_after_crop_voxels=box_shape(nonzero_bounding_box(image.array)),
        spacing_mm=image.geometry.spacing_mm,
        has_physical_spacing=image.geometry.has_physical_spacing,
        n_channels=n_channels,
        orientation=orientation_of(image.geometry),
        class_voxels={name: int(mask.sum()) for name, mask in class_masks.items()},
        class_boundary_voxels={name: count_boundary(mask) for name, mask in class_masks.items()},
        intensity=tuple(statistics_of(channel) for channel in voxels),
    )
    return Measured(
        fingerprint=fingerprint,
        foreground=draw_samples(
            voxels[:, _annotated_foreground(label, scheme)] if label is not None else voxels[:, :0]
        ),
        mask=draw_samples(voxels[:, _normalisation_mask(files, image)] if part == "Tr" else voxels[:, :0]),
        whole=draw_samples(voxels),
    )


def orientation_of(geometry: Geometry) -> str:
    """Return anatomical codes in array order ("SAR": z to superior, y to anterior, x to right).

    Only volumes with physical axes have them; else "".
    """
    if geometry.n_dims != 3 or not geometry.has_physical_spacing:
        return ""
    direction: np.ndarray = np.reshape(geometry.direction, (3, 3))
    codes = []
    for column in direction.T:
        world = int(np.argmax(np.abs(column)))
        codes.append(_DIRECTION_CODES[world][int(column[world] < 0)])
    return "".join(reversed(codes))


def masks_of_classes(label: np.ndarray, scheme: LabelScheme) -> dict[str, np.ndarray]:
    """Return a bool mask for every foreground class or region of inner class indices."""
    if scheme.regions is None:
        return {name: label == index for index, name in enumerate(scheme.class_names) if index}
    return {name: np.isin(label, part) for name, part in zip(scheme.class_names, scheme.regions, strict=True)}


def count_boundary(mask: np.ndarray) -> int:
    """Return how many voxels of a mask have a neighbour (sharing a face) outside of it."""
    used = ndimage.find_objects(mask.astype(np.uint8))
    if not used:
        return 0
    part = np.pad(mask[used[0]], 1)
    return int(part.sum() - ndimage.binary_erosion(part).sum())


def _read_on_grid(files: CaseFiles, image: Image, scheme: LabelScheme) -> np.ndarray:
    """Return inner class indices (*spatial)."""
    if files.label is None:
        raise InputDataError(
            "a training case without a label",
            where=f"case {files.case}",
            fix="add the file to labelsTr, or move the image to imagesUn",
        )
    label = read_label(files.label)
    _check_shape(label, image, files.label)
    return scheme.encode(label.array[0], str(files.label))


def _check_shape(label: Image, image: Image, path: object) -> None:
    if label.geometry.shape != image.geometry.shape:
        raise InputDataError(
            f"shape {label.geometry.shape}, but the image has {image.geometry.shape}",
            where=str(path),
            fix="put it on the image's grid",
        )


def _annotated_foreground(label: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    # Differs from nnU-Net, which counts ignored voxels as foreground: in scribbles most voxels are ignored.
    return ((label > 0) & (label != scheme.ignore_index)).ravel()


def _normalisation_mask(files: CaseFiles, image: Image) -> np.ndarray:
    if files.mask is None:
        return (image.array != 0).any(axis=0).ravel()
    mask = read_label(files.mask)
    _check_shape(mask, image, files.mask)
    return (mask.array[0] != 0).ravel()


def median_relative_size(cases: Sequence[CaseFingerprint]) -> float:
    """Return the median over cases of the share of voxels that the non-zero crop keeps."""
    kept = [math.prod(case.shape_after_crop_voxels) / math.prod(case.shape_voxels) for case in cases]
    return float(np.median(kept))
