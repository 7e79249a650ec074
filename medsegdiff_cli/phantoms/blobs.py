"""The blob phantom: one target among distractors, on texture and under noise that can hide them."""

import numpy as np

from medsegdiff_cli.phantoms.shapes import WobblyEllipse, draw_wobble, plane, smooth_noise

BLOB_CLASSES = {1: "target"}
BLOB_SHAPE = (48, 48)
BLOB_WINDOW = (-4.0, 5.0)
_CONTRASTS = (1.0, 0.5, -0.8)
_TEXTURE = 0.15


def draw_blobs(
    index: int, seed: int = 0, shape: tuple[int, int] = BLOB_SHAPE, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of picture `index`; the same for the same arguments, whoever else is drawn.

    Args:
        noise: deviation of the white noise; the target's contrast to the background is 1, the distractors' are 0.5
            and -0.8. The shapes and the noise's pattern do not depend on it.

    Returns:
        image: (y, x) float around 0; nearly all of it in `BLOB_WINDOW` up to a noise of 1.1.
        label: (y, x) uint8 with the values of `BLOB_CLASSES`.
    """
    random = np.random.default_rng([seed, index])
    y, x = plane(shape)
    edge = 2.0 / min(shape)
    ellipses = draw_ellipses(random)
    image = _TEXTURE * smooth_noise(shape, random, 1 / 8)
    for contrast, ellipse in zip(_CONTRASTS, ellipses, strict=True):
        image = image + contrast * ellipse.soft(ellipse.inside(y, x), edge)
    label = (ellipses[0].inside(y, x) > 0).astype(np.uint8)
    return image + noise * random.standard_normal(shape), label


def draw_ellipses(random: np.random.Generator) -> tuple[WobblyEllipse, WobblyEllipse, WobblyEllipse]:
    """Draw target and two distractors at three corners of a turned triangle, too far apart to touch."""
    turn = random.uniform(0, 2 * np.pi)
    drawn = []
    for corner, (smallest, largest) in enumerate(((0.2, 0.36), (0.12, 0.22), (0.12, 0.22))):
        angle = turn + corner * 2 * np.pi / 3 + random.uniform(-0.15, 0.15)
        distance = random.uniform(0.46, 0.56)
        orders, amplitudes, phases = draw_wobble(random, 0.15)
        drawn.append(
            WobblyEllipse(
                centre=(distance * np.sin(angle), distance * np.cos(angle)),
                radii=(random.uniform(smallest, largest), random.uniform(smallest, largest)),
                tilt=random.uniform(0, np.pi),
                orders=orders,
                amplitudes=amplitudes,
                phases=phases,
            )
        )
    return drawn[0], drawn[1], drawn[2]
