"""Phantoms: seeded images of two made-up organs in a textured body, in 2D and 3D, with known labels.

They show that a pipeline works and let tests measure it; they resemble no patient and prove nothing about patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label

CLASSES = {1: "organ", 2: "nodule"}
_BODY, _ORGAN, _NODULE = 90.0, 150.0, 200.0


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What phantoms look like.

    Attributes:
        shape: voxels of the first case, (z, y, x) or (y, x); the others differ by up to an eighth.
        spacing_mm: voxel edges of most cases; every third case is finer by a fifth along its first axis.
            None makes photographs without physical spacing.
        difficulty: 0 is clean; 1 has noise as strong as the organ's contrast to the body.
        seed: the same seed gives the same voxels, whatever the number of cases.
    """

    shape: tuple[int, ...] = (32, 40, 36)
    spacing_mm: tuple[float, ...] | None = (2.5, 1.25, 1.25)
    difficulty: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Phantom:
    """Intensities (1, *spatial) uint8, and the label (*spatial) uint8 with the values of `CLASSES`."""

    image: Image
    label: np.ndarray


def make_phantom(index: int, settings: PhantomSettings) -> Phantom:
    """Return phantom number `index`.

    A body with smooth texture holds a large organ and, cut into its border, a small brighter nodule; both are
    ellipsoids with wavy surfaces. A bias field and Gaussian noise lie over everything.
    """
    random = np.random.default_rng([settings.seed, index])
    shape = tuple(int(n + random.integers(-(n // 8), n // 8 + 1)) if index else n for n in settings.shape)
    axes = [np.linspace(-1, 1, n) for n in shape]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    body = _blob(position, [0.0] * len(shape), [0.92] * len(shape), random, waviness=0.05)
    centre, radii = random.uniform(-0.2, 0.2, len(shape)), random.uniform(0.42, 0.58, len(shape))
    organ = _blob(position, centre, radii, random, waviness=0.15) & body
    towards = random.normal(size=len(shape))
    border = centre + radii * towards / np.linalg.norm(towards)
    nodule = _blob(position, border, random.uniform(0.28, 0.38, len(shape)), random, waviness=0.05) & body
    label = np.where(nodule, 2, np.where(organ, 1, 0)).astype(np.uint8)
    clean = np.where(nodule, _NODULE, np.where(organ, _ORGAN, np.where(body, _BODY, 10.0)))
    voxels = _acquire(clean, random, settings.difficulty)
    return Phantom(Image(array=voxels[np.newaxis], geometry=_geometry(shape, index, settings)), label)


def write_phantoms(
    folder: Path, settings: PhantomSettings, *, labelled: int, unlabelled: int = 0, ending: str = ".nii.gz"
) -> Path:
    """Write `images/phantom_000.nii.gz ...` and, for the first `labelled` of them, `labels/phantom_000.nii.gz ...`.

    Args:
        folder: becomes a source for `msd convert folder`.
        ending: .png for photographs (2D without spacing).

    Returns:
        the folder.
    """
    for index in range(labelled + unlabelled):
        phantom, name = make_phantom(index, settings), f"phantom_{index:03d}{ending}"
        write_image(folder / "images" / name, phantom.image)
        if index < labelled:
            write_label(folder / "labels" / name, phantom.label, phantom.image.geometry)
    return folder


def _blob(
    position: np.ndarray,
    centre: Sequence[float] | np.ndarray,
    radii: Sequence[float] | np.ndarray,
    random: np.random.Generator,
    waviness: float,
) -> np.ndarray:
    """Return the mask of an ellipsoid whose surface moves in and out by about `waviness` of its radius."""
    offset: np.ndarray = np.reshape(centre, (-1, *(1,) * (position.ndim - 1)))
    scale: np.ndarray = np.reshape(radii, offset.shape)
    radius = np.sqrt((((position - offset) / scale) ** 2).sum(axis=0))
    return np.asarray(radius + waviness * _smooth_noise(position.shape[1:], random, 1 / 8) < 1)


def _acquire(clean: np.ndarray, random: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return what a scanner would make of the clean intensities, as uint8."""
    textured = clean * (1 + 0.05 * _smooth_noise(clean.shape, random, 1 / 16))
    shaded = textured * (1 + 0.15 * difficulty * _smooth_noise(clean.shape, random, 1 / 2))
    blurred = ndimage.gaussian_filter(shaded, 0.5)
    noisy = blurred + difficulty * (_ORGAN - _BODY) * random.normal(size=clean.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _smooth_noise(shape: Sequence[int], random: np.random.Generator, share: float) -> np.ndarray:
    """Return noise of mean 0 and deviation 1 whose grains are about `share` of the image long."""
    noise = ndimage.gaussian_filter(random.normal(size=tuple(shape)), [max(n * share / 2, 0.5) for n in shape])
    return np.asarray((noise - noise.mean()) / noise.std())


def _geometry(shape: tuple[int, ...], index: int, settings: PhantomSettings) -> Geometry:
    if settings.spacing_mm is None:
        return Geometry.plain(shape, has_physical_spacing=False)
    first = settings.spacing_mm[0] * (0.8 if index % 3 == 2 else 1.0)
    return Geometry.plain(shape, (first, *settings.spacing_mm[1:]))
