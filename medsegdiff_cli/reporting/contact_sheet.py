"""Contact sheet: many cases on one PNG, label contours in one colour a class, a legend below."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, Part
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.imaging.reading import read_image, read_label
from medsegdiff_cli.reporting.drawing import (
    MOST_COLUMNS,
    class_colours,
    draw_panel,
    grid_columns,
    shorten,
    write_in_corner,
)
from medsegdiff_cli.reporting.slices import Panel, panels_of

_DPI = 130
_TILE_INCHES = 2.2
_PART_WORDS: Mapping[Part, str] = {"Tr": "", "Ts": "test", "Un": "unlabelled"}


@dataclass(frozen=True, kw_only=True)
class SheetItem:
    """One case on the sheet.

    Attributes:
        panels: empty when the case cannot be shown; `note` then says why.
        note: stands in the picture's corner, for example "unlabelled".
    """

    title: str
    panels: tuple[Panel, ...]
    note: str = ""


def item_of_case(
    title: str, image: Image, label: Image | None, *, note: str = "", three_planes: bool = False
) -> SheetItem:
    """Return the item of an image and its label (or prediction) on the same grid; `label` holds file values."""
    if label is not None and label.geometry.shape != image.geometry.shape:
        return SheetItem(title=title, panels=(), note="image and label differ in shape")
    array = None if label is None else label.array[0]
    return SheetItem(title=title, panels=panels_of(image, array, three_planes=three_planes), note=note)


def sheet_items_of_dataset(folder: DatasetFolder, count: int, *, three_planes: bool = False) -> list[SheetItem]:
    """Return up to `count` cases, evenly spread over training, test and unlabelled images; training comes first.

    A case that cannot be read is shown as such.
    """
    cases: dict[Part, list[CaseFiles]] = {"Tr": folder.cases("Tr"), "Ts": folder.cases("Ts"), "Un": folder.cases("Un")}
    shares = _shares({part: len(found) for part, found in cases.items()}, count)
    return [
        _item_of_files(case, part, three_planes=three_planes)
        for part, found in cases.items()
        for case in _evenly(found, shares[part])
    ]


def contact_sheet(items: Sequence[SheetItem], legend: Mapping[str, Sequence[int]], path: Path) -> None:
    """Draw the sheet; the same items give the same bytes. Needs no display.

    Args:
        legend: class name to the label values that it consists of (`LabelScheme.file_values()`); regions may overlap.
        path: PNG, written atomically.

    Raises:
        ValueError: no items.
    """
    if not items:
        raise ValueError("a contact sheet needs at least one item")
    colours = class_colours(legend, [panel for item in items for panel in item.panels])
    tiles = [(item, panel) for item in items for panel in (item.panels or (None,))]
    columns = _columns(len(items), max(len(item.panels) for item in items))
    rows = math.ceil(len(tiles) / columns)
    width, height = _tile_size([panel for _, panel in tiles if panel is not None])
    legend_inches = 0.34 * math.ceil(max(len(legend), 1) / columns)
    figure = Figure(figsize=(columns * width, rows * (height + 0.26) + legend_inches), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total = figure.get_figheight()
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.02 / columns,
        right=1 - 0.02 / columns,
        top=1 - 0.22 / total,
        bottom=legend_inches / total,
        wspace=0.04,
        hspace=0.26 / height,
    )
    for index, (item, panel) in enumerate(tiles):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        axes.set_axis_off()
        axes.set_anchor("N")
        is_first = panel is None or panel is item.panels[0]
        _draw_tile(axes, item, panel, legend, colours, is_first=is_first)
    _draw_legend(figure, colours, columns)
    with atomic.staged(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _item_of_files(case: CaseFiles, part: Part, *, three_planes: bool) -> SheetItem:
    try:
        image = read_image(case.images[0])
        label = read_label(case.label) if case.label else None
    except InputDataError as error:
        return SheetItem(title=case.case, panels=(), note=f"cannot be read: {error.what}")
    words = [_PART_WORDS[part], "without label" if label is None and part != "Un" else ""]
    note = ", ".join(word for word in words if word)
    return item_of_case(case.case, image, label, note=note, three_planes=three_planes)


def _draw_tile(
    axes: Axes,
    item: SheetItem,
    panel: Panel | None,
    legend: Mapping[str, Sequence[int]],
    colours: Mapping[str, str],
    *,
    is_first: bool,
) -> None:
    axes.set_title(shorten(item.title) if is_first else "", fontsize=7, pad=3)
    if panel is None:
        axes.text(0.5, 0.5, item.note, fontsize=7, color="#b00020", ha="center", va="center", wrap=True)
        return
    draw_panel(axes, panel, legend, colours)
    if item.note and is_first:
        write_in_corner(axes, 0.03, 0.97, item.note, "left", "top")
    if panel.caption:
        write_in_corner(axes, 0.97, 0.03, panel.caption, "right", "bottom")


def _draw_legend(figure: Figure, colours: Mapping[str, str], columns: int) -> None:
    if not colours:
        return
    handles = [Line2D([], [], color=colour, linewidth=2, label=shorten(name)) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), columns), fontsize=7, frameon=False)


def _columns(n_items: int, panels_each: int) -> int:
    """Return the columns of a sheet; the panels of one case stay in one row."""
    if panels_each > 1:
        return panels_each * max(1, MOST_COLUMNS // panels_each if n_items > 1 else 1)
    return grid_columns(n_items)


def _tile_size(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return width and height in inches of every tile: the median aspect, within limits."""
    if not panels:
        return _TILE_INCHES, _TILE_INCHES
    aspects = [
        (panel.image.shape[0] * panel.spacing[0]) / (panel.image.shape[1] * panel.spacing[1]) for panel in panels
    ]
    return _TILE_INCHES, _TILE_INCHES * float(np.clip(np.median(aspects), 0.5, 2.0))


def _shares(available: Mapping[Part, int], count: int) -> dict[Part, int]:
    """Divide `count`: up to a quarter each to test and unlabelled images, the rest to training, gaps filled."""
    shares = {part: min(n, max(count // 4, 1)) if part != "Tr" else 0 for part, n in available.items()}
    shares["Tr"] = min(available["Tr"], max(count - sum(shares.values()), 1))
    for part in ("Tr", "Ts", "Un"):
        free = count - sum(shares.values())
        shares[part] = max(0, min(available[part], shares[part] + free))
    return shares


def _evenly(cases: Sequence[CaseFiles], n: int) -> list[CaseFiles]:
    return [cases[int(position)] for position in np.linspace(0, len(cases) - 1, n).round()] if n else []
