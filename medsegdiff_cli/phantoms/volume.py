"""The organ phantom: an organ and a nodule on its border, in a textured body, in 2D and 3D."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medsegdiff_cli.phantoms.shapes import smooth_noise

ORGAN_CLASSES = {1: "organ", 2: "nodule"}
VOLUME_SHAPE, VOLUME_SPACING_MM = (16, 32, 32), (3.0, 1.5, 1.5)
_BODY, _ORGAN, _NODULE = 90.0, 150.0, 200.0


def draw_volume(
    index: int, seed: int = 0, shape: tuple[int, ...] = VOLUME_SHAPE, difficulty: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of volume `index`, all of one shape; the same for the same arguments.

    The standard shape (z, y, x) with its spacing is anisotropic: slices are twice as thick as pixels are wide.

    Returns:
        image: (*spatial) uint8.
        label: (*spatial) uint8 with the values of `ORGAN_CLASSES`.
    """
    return draw_organ(np.random.default_rng([seed, index]), shape, difficulty)


def draw_organ(random: np.random.Generator, shape: tuple[int, ...], difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label, both (*spatial) uint8.

    A body with smooth texture holds a large organ and, cut into its border, a small brighter nodule; both are
    ellipsoids with wavy surfaces. A bias field and Gaussian noise lie over everything.

    Args:
        difficulty: 0 is clean; 1 has noise as strong as the organ's contrast to the body.
    """
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
    return _acquire(clean, random, difficulty), label


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
    return np.asarray(radius + waviness * smooth_noise(position.shape[1:], random, 1 / 8) < 1)


def _acquire(clean: np.ndarray, random: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return what a scanner would make of the clean intensities, as uint8."""
    textured = clean * (1 + 0.05 * smooth_noise(clean.shape, random, 1 / 16))
    shaded = textured * (1 + 0.15 * difficulty * smooth_noise(clean.shape, random, 1 / 2))
    blurred = ndimage.gaussian_filter(shaded, 0.5)
    noisy = blurred + difficulty * (_ORGAN - _BODY) * random.normal(size=clean.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
