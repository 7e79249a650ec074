"""Overlay figure: one case in a row: image, reference, each prediction, and where a model is unsure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.reporting.drawing import class_colours, draw_contour, draw_panel, shorten, write_in_corner
from medsegdiff_cli.reporting.slices import Panel, choose_cut, panel_at, slice_at

_DPI = 110
_PANEL_INCHES, _GAP_INCHES = 2.3, 0.06
_TITLE_INCHES, _LEGEND_INCHES, _BAR_INCHES = 0.4, 0.28, 0.55
# Brightness rises evenly from black to white: readable with any colour vision and in print.
_MAP_COLOURS = "magma"


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What one model predicted.

    Attributes:
        name: of the model; above the panel.
        label: (*spatial) integers on the image's grid, in the values of the legend.
        dice: of the whole case (not of the slice), None where undefined or unknown.
    """

    name: str
    label: np.ndarray
    dice: float | None = None


@dataclass(frozen=True, kw_only=True)
class UncertaintyMap:
    """How unsure a model is at each voxel.

    Attributes:
        name: above the panel, with the unit, for example "tedm: entropy (nats)".
        values: (*spatial) floats on the image's grid.
        top: value of the brightest colour, so that figures can be compared: ln(classes) for an entropy, 1 for shares.
    """

    name: str
    values: np.ndarray
    top: float = 1.0


def overlay_figure(
    image: Image,
    reference: np.ndarray,
    overlays: Sequence[Overlay],
    legend: Mapping[str, Sequence[int]],
    *,
    uncertainty: UncertaintyMap | None = None,
) -> bytes:
    """Return the row of panels as a PNG; the same arguments give the same bytes. Needs no display.

    Of a volume the slice with most reference is shown, in its physical aspect. The last panel, with the colour bar,
    is the map of uncertainty with the reference's outline.

    Args:
        reference: (*spatial) integers on the image's grid.
        legend: class name to the label values that it consists of; regions may overlap.

    Raises:
        ValueError: an array does not fit the image's grid.
    """
    extra = () if uncertainty is None else (uncertainty.values,)
    for array in (reference, *(overlay.label for overlay in overlays), *extra):
        if array.shape != image.geometry.shape:
            raise ValueError(f"array {array.shape} does not fit the grid {image.geometry.shape}")
    cut = choose_cut(image.geometry, reference)
    titles = ["image", "reference", *(_title(overlay) for overlay in overlays)]
    labels = [None, reference, *(overlay.label for overlay in overlays)]
    panels = [panel_at(image, label, cut) for label in labels]
    colours = class_colours(legend, panels)
    row = _Row(panels[0], n_panels=len(panels) + len(extra), has_bar=uncertainty is not None)
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        axes = row.axes(index, title)
        draw_panel(axes, panel, legend, colours)
        if index == 0 and panel.caption:
            write_in_corner(axes, 0.97, 0.03, panel.caption, "right", "bottom")
    if uncertainty is not None:
        axes = row.axes(len(panels), shorten(uncertainty.name))
        shown = slice_at(uncertainty.values, image.geometry, cut)
        _draw_map(axes, row, shown, panels[1], legend, uncertainty.top)
    handles = [Line2D([], [], color=colour, linewidth=2, label=shorten(name)) for name, colour in colours.items()]
    if handles:
        row.figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=7, frameon=False)
    stream = BytesIO()
    row.figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


class _Row:
    """Places panels side by side, sized in inches, so that none is squeezed by a title or a colour bar."""

    def __init__(self, panel: Panel, *, n_panels: int, has_bar: bool) -> None:
        aspect = panel.image.shape[0] * panel.spacing[0] / (panel.image.shape[1] * panel.spacing[1])
        self.panel_inches = _PANEL_INCHES * float(np.clip(aspect, 0.4, 2.5))
        self.width = n_panels * (_PANEL_INCHES + _GAP_INCHES) + _GAP_INCHES + has_bar * _BAR_INCHES
        self.height = self.panel_inches + _TITLE_INCHES + _LEGEND_INCHES
        self.figure = Figure(figsize=(self.width, self.height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, index: int, title: str) -> Axes:
        """Return the axes of panel `index`."""
        axes = self._box(_GAP_INCHES + index * (_PANEL_INCHES + _GAP_INCHES), _PANEL_INCHES)
        axes.set_axis_off()
        axes.set_title(title, fontsize=8, pad=3)
        return axes

    def bar(self) -> Axes:
        """Return the axes of the colour bar, right of the last panel."""
        return self._box(self.width - _BAR_INCHES + 0.04, 0.1)

    def _box(self, left: float, width: float) -> Axes:
        box = (
            left / self.width,
            _LEGEND_INCHES / self.height,
            width / self.width,
            self.panel_inches / self.height,
        )
        return self.figure.add_axes(box)


def _draw_map(
    axes: Axes, row: _Row, shown: np.ndarray, reference: Panel, legend: Mapping[str, Sequence[int]], top: float
) -> None:
    height, width = (n * step for n, step in zip(shown.shape, reference.spacing, strict=True))
    picture = axes.imshow(shown, cmap=_MAP_COLOURS, vmin=0, vmax=top, extent=(0, width, height, 0))
    if reference.label is not None:
        for values in legend.values():
            draw_contour(axes, np.isin(reference.label, values), reference.spacing, "white")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    bar = row.figure.colorbar(picture, cax=row.bar())
    bar.ax.tick_params(labelsize=6, length=2, pad=2)


def _title(overlay: Overlay) -> str:
    return shorten(overlay.name) + ("" if overlay.dice is None else f"\nDice {overlay.dice:.3f}")
