"""Pieces that every picture of this room is drawn with."""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from medsegdiff_cli.reporting.slices import Panel

MOST_COLUMNS = 6
# Bright on grey and told apart by most colour-blind readers; further classes get generated hues. Colour photographs
# (skin, retina, tissue) are mostly red, so there the second colour comes first.
_COLOURS = ("#ff4d4d", "#2ec4ff", "#ffd23f", "#4fe07a", "#c98bff", "#ff9f1c", "#ff85d5", "#b5f5ff")
_GOLDEN_RATIO = 0.618034
_LONGEST_TITLE = 26
_LINE_WIDTH, _THIN_LINE_WIDTH = 0.8, 0.4
# Outlines this many times longer than the picture's border (vessels) are drawn thin.
_LONG_OUTLINE = 2.0


def class_colours(legend: Iterable[str], panels: Iterable[Panel]) -> dict[str, str]:
    """Return the colour of each class; `panels` tell greys from colour photographs."""
    is_photo = any(panel.image.ndim == 3 for panel in panels)
    return {name: _colour(index + is_photo) for index, name in enumerate(legend)}


def draw_panel(axes: Axes, panel: Panel, legend: Mapping[str, Sequence[int]], colours: Mapping[str, str]) -> None:
    """Draw a slice in its physical aspect with the outlines of its label.

    Args:
        legend: class name to the label values that it consists of.
        colours: of every class of the legend.
    """
    height, width = panel.image.shape[0] * panel.spacing[0], panel.image.shape[1] * panel.spacing[1]
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="antialiased")
    if panel.label is not None:
        for name, values in legend.items():
            draw_contour(axes, np.isin(panel.label, values), panel.spacing, colours[name])
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def write_in_corner(
    axes: Axes, x: float, y: float, text: str, horizontal: Literal["left", "right"], vertical: Literal["top", "bottom"]
) -> None:
    """Write text on a dark ground; positions are shares of the axes, from the lower left."""
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    axes.text(x, y, text, ha=horizontal, va=vertical, transform=axes.transAxes, fontsize=6, color="white", bbox=box)


def draw_contour(axes: Axes, mask: np.ndarray, spacing: tuple[float, float], colour: str) -> None:
    """Outline a mask; a rim of background closes contours that touch the border."""
    if not mask.any():
        return
    y, x = ((np.arange(-1, n + 1) + 0.5) * step for n, step in zip(mask.shape, spacing, strict=True))
    # The rim lies on the border itself, half a pixel out.
    y[[0, -1]], x[[0, -1]] = (0, mask.shape[0] * spacing[0]), (0, mask.shape[1] * spacing[1])
    padded = np.pad(mask.astype(np.float32), 1)
    n_edges = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    is_long = n_edges > _LONG_OUTLINE * 2 * sum(mask.shape)
    width = _THIN_LINE_WIDTH if is_long else _LINE_WIDTH
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=width)


def shorten(text: str) -> str:
    """Leave out the middle of a long name: its ends tell cases apart."""
    if len(text) <= _LONGEST_TITLE:
        return text
    half = (_LONGEST_TITLE - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def grid_columns(n_tiles: int) -> int:
    """Return a number of columns that leaves few gaps in the last row, near a sheet somewhat wider than high."""
    if n_tiles <= 3:
        return n_tiles
    wanted = math.sqrt(n_tiles * 1.4)
    return min(range(3, MOST_COLUMNS + 1), key=lambda columns: (-n_tiles % columns) / columns + abs(columns - wanted))


def _colour(index: int) -> str:
    if index < len(_COLOURS):
        return _COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, 0.65, 1.0)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
