"""What all drawings share: a plane of coordinates, wobbly ellipses, soft edges, smooth texture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


def plane(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return y (n, 1) and x (1, m) of the pixel centres; the image spans -1 to 1 along each axis."""
    return centres(shape[0])[:, np.newaxis], centres(shape[1])[np.newaxis, :]


def centres(n: int) -> np.ndarray:
    """Return the n pixel centres of an axis that spans -1 to 1."""
    return (2 * np.arange(n) + 1) / n - 1


@dataclass(frozen=True, kw_only=True)
class WobblyEllipse:
    """An ellipse whose border is r(angle) = 1 + sum of a_k cos(k angle + phase_k) times the ellipse's.

    The angle is the one on the unit circle that the ellipse is stretched from. Hence the enclosed area is
    pi * ry * rx * (1 + sum of a_k^2 / 2), whatever the phases and the tilt, as long as no order comes twice.

    Attributes:
        centre, radii: (y, x), in units of half the image.
        tilt: turn of the axes, in radians.
        orders, amplitudes, phases: k, a_k and phase_k of each wave on the border.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    tilt: float = 0.0
    orders: tuple[int, ...] = ()
    amplitudes: tuple[float, ...] = ()
    phases: tuple[float, ...] = ()

    @property
    def area(self) -> float:
        """Enclosed area; the whole image has 4."""
        return float(np.pi * np.prod(self.radii) * (1 + np.square(self.amplitudes).sum() / 2))

    def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return 1 at the centre, falling to 0 on the border and below 0 outside."""
        dy, dx = y - self.centre[0], x - self.centre[1]
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        v, u = (cos * dy - sin * dx) / self.radii[0], (sin * dy + cos * dx) / self.radii[1]
        border: np.ndarray | float = 1.0
        if self.orders:
            angle = np.arctan2(v, u)
            waves = zip(self.orders, self.amplitudes, self.phases, strict=True)
            border = 1.0 + sum(a * np.cos(k * angle + phase) for k, a, phase in waves)
        return np.asarray(border - np.hypot(v, u))

    def soft(self, inside: np.ndarray, width: float) -> np.ndarray:
        """Return weights from `inside`: 1, then 0.5 on the border, 0 past an edge about `width` wide (half images)."""
        return np.clip(inside * float(np.mean(self.radii)) / width + 0.5, 0.0, 1.0)


def draw_wobble(
    random: np.random.Generator, amplitude: float, orders: Sequence[int] = (2, 3, 4, 5)
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Draw (orders, amplitudes, phases); the amplitudes add up to at most `amplitude`, finer waves are weaker."""
    share = 1 / np.asarray(orders)
    amplitudes = amplitude * share / share.sum() * random.uniform(0.3, 1.0, len(orders))
    phases = random.uniform(0, 2 * np.pi, len(orders))
    return tuple(orders), tuple(amplitudes.tolist()), tuple(phases.tolist())


def smooth_noise(shape: Sequence[int], random: np.random.Generator, share: float) -> np.ndarray:
    """Return noise of mean 0 and deviation 1 whose grains are about `share` of the image long."""
    noise = ndimage.gaussian_filter(random.normal(size=tuple(shape)), [max(n * share / 2, 0.5) for n in shape])
    return np.asarray((noise - noise.mean()) / noise.std())
