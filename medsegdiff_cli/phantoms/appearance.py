"""Appearance shift: a made-up second scanner for real images, whose anatomy and labels stay as they are."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_DARKER, _BRIGHTER = (1.6, 2.4), (0.45, 0.65)
_LOW, _HIGH = 0.5, 99.5


@dataclass(frozen=True, kw_only=True)
class AppearanceShift:
    """What happens to intensities u in [0, 1], in this order; the defaults do nothing.

    Attributes:
        gamma: exponent, u ** gamma; far from 1.
        bias: depth of the shading; u is multiplied by a smooth field from exp(-bias) to 1.
        bias_slopes, bias_curves: one number an axis, the field's linear and quadratic part before it is scaled.
        blur_px: deviation of a Gaussian along the last two axes, in px.
        noise: deviation of white noise, in units of u.
    """

    gamma: float = 1.0
    bias: float = 0.0
    bias_slopes: tuple[float, ...] = ()
    bias_curves: tuple[float, ...] = ()
    blur_px: float = 0.0
    noise: float = 0.0


def draw_shift(random: np.random.Generator, n_dims: int) -> AppearanceShift:
    """Draw a shift: gamma from [0.45, 0.65] or [1.6, 2.4], shading, mild blur and mild noise."""
    return AppearanceShift(
        gamma=float(random.uniform(*(_DARKER, _BRIGHTER)[int(random.integers(2))])),
        bias=float(random.uniform(0.4, 0.8)),
        bias_slopes=tuple(random.uniform(-1, 1, n_dims).tolist()),
        bias_curves=tuple(random.uniform(-0.5, 0.5, n_dims).tolist()),
        blur_px=float(random.uniform(0.4, 0.8)),
        noise=float(random.uniform(0.01, 0.03)),
    )


def shift_appearance(image: np.ndarray, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return the image as another scanner might have shown it: same shape, dtype and smallest-to-largest range.

    Everything happens on the scale between the 0.5 and 99.5 percentiles; an image without contrast comes back as it is.

    Args:
        image: (*spatial), 2D or 3D, integers or floats of any range.
        seed: draws the shift and its noise; give each case its own, such as (seed, number of the case).
    """
    random = np.random.default_rng(seed)
    return apply_shift(image, draw_shift(random, image.ndim), random)


def apply_shift(image: np.ndarray, shift: AppearanceShift, random: np.random.Generator) -> np.ndarray:
    """Return the image (*spatial) after this shift; `random` is for the noise alone.

    Raises:
        ValueError: not two or three axes, or neither integers nor floats.
    """
    if image.ndim not in (2, 3) or image.dtype.kind not in "iuf":
        raise ValueError(f"an image has 2 or 3 axes of integers or floats, not {image.ndim} of {image.dtype}")
    # float32 holds integers of up to 16 bits and float32 itself; wider types are computed in float64.
    working = np.result_type(image.dtype, np.float32)
    low, high = (float(value) for value in np.percentile(image, (_LOW, _HIGH)))
    if not high > low:
        return image.copy()
    unit = (image.astype(working) - low) / (high - low)
    inside = np.clip(unit, 0, 1)
    # What lies beyond the percentiles keeps its distance: one hot pixel must not stretch the rest.
    unit = inside**shift.gamma + (unit - inside)
    if shift.bias:
        unit *= _shading(image.shape, shift).astype(working)
    if shift.blur_px:
        unit = ndimage.gaussian_filter(unit, [0.0] * (image.ndim - 2) + [shift.blur_px] * 2)
    if shift.noise:
        unit += shift.noise * random.standard_normal(image.shape).astype(working)
    shifted = np.clip(unit * (high - low) + low, image.min(), image.max())
    return np.asarray(np.rint(shifted) if image.dtype.kind in "iu" else shifted).astype(image.dtype)


def _shading(shape: tuple[int, ...], shift: AppearanceShift) -> np.ndarray:
    """Return the field exp(-bias) to 1, a quadratic of the position scaled to this range."""
    field: np.ndarray = np.zeros(shape)
    for axis, (n, slope, curve) in enumerate(zip(shape, shift.bias_slopes, shift.bias_curves, strict=True)):
        position = np.linspace(-1, 1, n)
        sizes = [n if number == axis else 1 for number in range(len(shape))]
        field = field + (slope * position + curve * position**2).reshape(sizes)
    extent = field.max() - field.min()
    return np.exp(shift.bias * ((field - field.max()) / extent if extent else field))
