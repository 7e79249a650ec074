"""Scanners: what turns one anatomy into images of different brightness, shading, sharpness and noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from medsegdiff_cli.errors import UsageError, did_you_mean

GRAIN_PX = 1.5
LATERAL, VERTICAL = -1, -2


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What a scanner does to tissue in [0, 1], in this order; the defaults do nothing.

    Attributes:
        gamma: exponent of its response; above 1 darkens, below 1 brightens.
        bias: strength of its shading: sensitivity falls along `bias_axis` in a straight line, from 1 + bias / 2 in
            the first to 1 - bias / 2 in the last pixel.
        bias_axis: LATERAL (the last axis) or VERTICAL (the one before).
        blur_px: deviation of its Gaussian point spread along each axis, in px.
        noise: deviation of its white noise, in units of the tissue's range.
        correlated_noise: deviation of white noise that then goes through a Gaussian of GRAIN_PX along each axis. In
            2D that leaves a deviation of correlated_noise / (2 sqrt(pi) GRAIN_PX), in grains a few px wide.
    """

    gamma: float = 1.0
    bias: float = 0.0
    bias_axis: int = LATERAL
    blur_px: float = 0.0
    noise: float = 0.0
    correlated_noise: float = 0.0


SCANNERS: Mapping[str, Scanner] = MappingProxyType(
    {
        "A": Scanner(noise=0.02),
        "B": Scanner(gamma=1.8, bias=0.4, blur_px=0.7, noise=0.06),
        "C": Scanner(gamma=0.6, bias=0.4, bias_axis=VERTICAL, correlated_noise=0.25),
        "B-strong": Scanner(gamma=2.6, bias=0.8, blur_px=0.7, noise=0.16),
        "C-strong": Scanner(gamma=0.5, bias=0.7, bias_axis=VERTICAL, correlated_noise=0.45),
    }
)


def find_scanner(name: str) -> Scanner:
    """Return the scanner of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in SCANNERS:
        raise UsageError(f"there is no scanner '{name}'", where="scanner", fix=did_you_mean(name, SCANNERS))
    return SCANNERS[name]


def acquire(tissue: np.ndarray, scanner: Scanner, random: np.random.Generator) -> np.ndarray:
    """Return a scanner's image of the tissue: float, nearly in [0, 1] (noise and shading reach beyond).

    Args:
        tissue: (*spatial) in [0, 1], 2D or 3D.
    """
    image = np.asarray(tissue, dtype=np.float64) ** scanner.gamma
    if scanner.bias:
        image = image * _shading(image.shape, scanner)
    if scanner.blur_px:
        image = ndimage.gaussian_filter(image, scanner.blur_px)
    if scanner.noise:
        image = image + scanner.noise * random.standard_normal(image.shape)
    if scanner.correlated_noise:
        white = scanner.correlated_noise * random.standard_normal(image.shape)
        image = image + ndimage.gaussian_filter(white, GRAIN_PX, mode="wrap")
    return np.asarray(image)


def to_uint8(image: np.ndarray, window: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Return 0 to 255 for the window's values, clipped outside of it."""
    low, high = window
    return np.clip(np.rint((image - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _shading(shape: tuple[int, ...], scanner: Scanner) -> np.ndarray:
    """Return the factors of the sensitivity, broadcastable to `shape`."""
    n = shape[scanner.bias_axis]
    line = np.linspace(1 + scanner.bias / 2, 1 - scanner.bias / 2, n)
    sizes = [1] * len(shape)
    sizes[scanner.bias_axis] = n
    return line.reshape(sizes)
