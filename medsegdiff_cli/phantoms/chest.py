"""The chest phantom: a coarse radiograph with two lungs, drawn apart from the scanner that takes its image."""

from dataclasses import dataclass

import numpy as np

from medsegdiff_cli.phantoms.shapes import WobblyEllipse, draw_wobble, plane, smooth_noise

CHEST_CLASSES = {1: "lung"}
_AIR, _BODY, _LUNG, _HEART, _MEDIASTINUM = 0.03, 0.58, 0.22, 0.74, 0.68
_RIB, _CLAVICLE, _OPACITY = 0.12, 0.13, 0.26
_OPACITY_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class ChestAnatomy:
    """One person's shapes, in units of half the image.

    Attributes:
        lungs: on the image's left and right side.
        heart: hides a part of the lungs; that part is no lung in the label.
        opacity: a bright spot inside a lung, still lung in the label; None in most people.
        rib_spacing, rib_slope: distance from rib to rib, and fall of a rib towards the side.
        body_width: half the width of the trunk.
    """

    lungs: tuple[WobblyEllipse, WobblyEllipse]
    heart: WobblyEllipse
    opacity: WobblyEllipse | None
    rib_spacing: float
    rib_slope: float
    body_width: float


def draw_chest(index: int, seed: int = 0, shape: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Return tissue and label of person `index`; the same for the same arguments, whoever else is drawn.

    Returns:
        tissue: (y, x) float in [0, 1], bright where much tissue is in the ray's way.
        label: (y, x) uint8 with the values of `CHEST_CLASSES`.
    """
    random = np.random.default_rng([seed, index])
    anatomy = draw_anatomy(random)
    y, x = plane(shape)
    edge = 3.0 / min(shape)
    depth = [lung.inside(y, x) for lung in anatomy.lungs]
    heart_depth = anatomy.heart.inside(y, x)
    label = ((depth[0] > 0) | (depth[1] > 0)) & (heart_depth <= 0)

    body = _trunk(y, x, anatomy.body_width)
    tissue = _AIR + (_BODY - _AIR) * np.clip(body / (2 * edge) + 0.5, 0, 1)
    tissue = tissue + (_MEDIASTINUM - _BODY) * np.exp(-((x / 0.16) ** 2)) * (body > 0)
    aerated = np.maximum(*(lung.soft(inside, edge) for lung, inside in zip(anatomy.lungs, depth, strict=True)))
    tissue = tissue + (_LUNG - tissue) * aerated
    tissue = tissue + (_HEART - tissue) * anatomy.heart.soft(heart_depth, 1.5 * edge)
    tissue = tissue + _bones(y, x, anatomy) * (body > 0)
    if anatomy.opacity is not None:
        tissue = tissue + _OPACITY * anatomy.opacity.soft(anatomy.opacity.inside(y, x), 5 * edge) * aerated
    tissue = tissue * (1 + 0.05 * smooth_noise(shape, random, 1 / 12))
    return np.clip(tissue, 0, 1), label.astype(np.uint8)


def draw_anatomy(random: np.random.Generator) -> ChestAnatomy:
    """Draw one person. Lungs never touch each other or the trunk's border."""
    height, middle = random.uniform(0.46, 0.62), random.uniform(-0.16, 0.06)
    lungs = (_draw_lung(random, -1, height, middle), _draw_lung(random, 1, height, middle))
    orders, amplitudes, phases = draw_wobble(random, 0.06)
    heart = WobblyEllipse(
        centre=(middle + random.uniform(0.5, 0.62) * height, random.uniform(0.06, 0.14)),
        radii=(random.uniform(0.22, 0.3), random.uniform(0.22, 0.32)),
        tilt=random.uniform(0.2, 0.7),
        orders=orders,
        amplitudes=amplitudes,
        phases=phases,
    )
    return ChestAnatomy(
        lungs=lungs,
        heart=heart,
        opacity=_draw_opacity(random, lungs),
        rib_spacing=random.uniform(0.17, 0.23),
        rib_slope=random.uniform(0.25, 0.5),
        body_width=random.uniform(0.88, 0.97),
    )


def _draw_lung(random: np.random.Generator, side: int, height: float, middle: float) -> WobblyEllipse:
    """Draw a lung on side -1 or 1, narrower at the top and leaning to the middle there."""
    orders, amplitudes, phases = draw_wobble(random, 0.09, orders=(2, 4, 5))
    return WobblyEllipse(
        centre=(middle + random.uniform(-0.04, 0.04), side * random.uniform(0.41, 0.46)),
        radii=(height * random.uniform(0.94, 1.06), random.uniform(0.21, 0.28)),
        tilt=-side * random.uniform(0.02, 0.12),
        # The fixed wave of order 3 makes the top narrower than the base.
        orders=(3, *orders),
        amplitudes=(0.05, *amplitudes),
        phases=(-np.pi / 2, *phases),
    )


def _draw_opacity(random: np.random.Generator, lungs: tuple[WobblyEllipse, WobblyEllipse]) -> WobblyEllipse | None:
    """Draw a spot in the inner part of a lung, for a share of the people."""
    present, lung = random.random() < _OPACITY_SHARE, lungs[int(random.integers(2))]
    angle, distance, size = random.uniform(0, 2 * np.pi), random.uniform(0.0, 0.5), random.uniform(0.10, 0.17)
    if not present:
        return None
    centre = (
        lung.centre[0] + distance * lung.radii[0] * np.sin(angle),
        lung.centre[1] + distance * lung.radii[1] * np.cos(angle),
    )
    return WobblyEllipse(centre=centre, radii=(1.3 * size, size))


def _trunk(y: np.ndarray, x: np.ndarray, width: float) -> np.ndarray:
    """Return how deep inside trunk or neck a point is; below 0 is air."""
    trunk = 1 - ((np.abs(x) / width) ** 4 + (np.abs(np.minimum(y - 0.5, 0)) / 1.42) ** 4) ** 0.25
    neck = 0.22 - np.abs(x) + 0 * y
    return np.maximum(trunk, neck)


def _bones(y: np.ndarray, x: np.ndarray, anatomy: ChestAnatomy) -> np.ndarray:
    """Return what ribs, collar bones and spine add."""
    side = np.abs(x)
    turns = (y - anatomy.rib_slope * side + 1.1 * (side - 0.45) ** 2) / anatomy.rib_spacing
    in_cage = np.clip((0.78 - side) / 0.06, 0, 1) * np.clip((side - 0.1) / 0.1, 0, 1) * np.clip((0.62 - y) / 0.1, 0, 1)
    ribs = _RIB * np.clip(np.cos(2 * np.pi * turns), 0, 1) ** 1.5 * in_cage
    top = anatomy.lungs[0].centre[0] - anatomy.lungs[0].radii[0]
    collar = np.exp(-(((y - top - 0.12 + 0.22 * side) / 0.04) ** 2)) * np.clip((0.72 - side) / 0.1, 0, 1)
    spine = 0.04 * np.cos(2 * np.pi * y / 0.2) * np.exp(-((x / 0.09) ** 2))
    return np.asarray(np.maximum(ribs, _CLAVICLE * collar * (side > 0.08)) + spine)
