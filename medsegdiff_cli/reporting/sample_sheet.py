"""Sample sheet: images that a generative model drew, side by side on one PNG."""

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medsegdiff_cli import atomic
from medsegdiff_cli.reporting.drawing import grid_columns

_DPI = 130
_TILE_INCHES = 1.6
_GAP_INCHES = 0.05
_TITLE_LINE_INCHES = 0.17
_CHARACTERS_PER_INCH = 15
_WINDOW_PERCENT = (1.0, 99.0)
# Generated images are greys or photographs; nothing in them is this red.
_NOT_FINITE = (0.9, 0.0, 0.1)


def draw_samples(images: np.ndarray, path: Path, *, title: str) -> Path:
    """Draw generated images in a grid, all in one grey window, so that tiles can be compared.

    The window runs from the 1st to the 99th percentile of all shown pixels. Pixels that are not finite are red.

    Args:
        images: (n, channel, *spatial) floats in the network's normalised space. Of volumes the middle slice across
            the first spatial axis is shown, as squares of the network's grid; three channels in 2D are shown as
            colours, else the first channel.
        path: PNG, written atomically; the same images give the same bytes.
        title: stands above the tiles, wrapped.

    Returns:
        `path`.

    Raises:
        ValueError: no images, or neither 2D nor 3D ones.
    """
    images = np.asarray(images)
    if images.ndim not in (4, 5) or 0 in images.shape:
        raise ValueError(f"images must be (n, channel, *spatial) in 2D or 3D and not empty, not {images.shape}")
    tiles = _windowed(_slices(images))
    n, height, width = tiles.shape[:3]
    columns = grid_columns(n)
    rows = math.ceil(n / columns)
    tile_height = _TILE_INCHES * height / width
    total_width = columns * (_TILE_INCHES + _GAP_INCHES) + _GAP_INCHES
    lines = textwrap.wrap(title, max(12, int(total_width * _CHARACTERS_PER_INCH)))
    above = len(lines) * _TITLE_LINE_INCHES + 2 * _GAP_INCHES
    total_height = rows * (tile_height + _GAP_INCHES) + above
    figure = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for index, tile in enumerate(tiles):
        left = _GAP_INCHES + index % columns * (_TILE_INCHES + _GAP_INCHES)
        top = above + index // columns * (tile_height + _GAP_INCHES)
        bottom = total_height - top - tile_height
        box = (left / total_width, bottom / total_height, _TILE_INCHES / total_width, tile_height / total_height)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        axes.imshow(tile, interpolation="antialiased", aspect="auto")
    figure.text(
        _GAP_INCHES / total_width, 1 - _GAP_INCHES / total_height, "\n".join(lines), fontsize=7, ha="left", va="top"
    )
    with atomic.staged(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def _slices(images: np.ndarray) -> np.ndarray:
    """Return (n, y, x, 1 or 3)."""
    if images.ndim == 5:
        images = images[:, :1, images.shape[2] // 2]
    channels = images if images.shape[1] == 3 else images[:, :1]
    return np.moveaxis(channels, 1, -1).astype(np.float32)


def _windowed(tiles: np.ndarray) -> np.ndarray:
    """Return (n, y, x, 3) from 0 to 1."""
    is_finite = np.isfinite(tiles)
    low, high = np.percentile(tiles[is_finite], _WINDOW_PERCENT) if is_finite.any() else (0.0, 1.0)
    scaled = np.clip((np.where(is_finite, tiles, low) - low) / max(float(high - low), 1e-9), 0, 1)
    colours = np.broadcast_to(scaled, (*tiles.shape[:3], 3)).copy()
    colours[~is_finite.all(axis=-1)] = _NOT_FINITE
    return colours
