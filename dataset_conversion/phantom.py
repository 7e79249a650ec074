"""Phantom images for the tiny fake sources: noise with brighter boxes, and the label map of the boxes."""

from collections.abc import Sequence

import numpy as np


def phantom(shape: Sequence[int], values: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its label, both (1, *shape).

    Args:
        values: label values; each gets a box of its own along the last axis.

    Returns:
        Grey values 0..255 (uint8), and the label (uint8, or uint16 for values above 255).
    """
    generator = np.random.default_rng(seed)
    label: np.ndarray = np.zeros(shape, dtype=np.uint8 if max(values, default=0) <= 255 else np.uint16)
    width = shape[-1] // (2 * max(len(values), 1))
    for index, value in enumerate(values):
        start = index * 2 * width
        label[(*(slice(1, size - 1) for size in shape[:-1]), slice(start, start + width))] = value
    image = generator.integers(0, 100, shape) + 100 * (label > 0)
    return image.astype(np.uint8)[np.newaxis], label[np.newaxis]
