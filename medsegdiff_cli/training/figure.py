"""The picture of a training; in a file of its own, for matplotlib is slow to import."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SIZE_INCHES = (9.0, 8.0)
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe & Ito: safe for colour-blind


def draw_progress(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the lines of a `metrics.jsonl`; stages follow each other along the axis of steps.

    A training that validates nothing, as a pretraining, has no panel for it.
    """
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    steps, borders = _running_steps(lines)
    validated = [
        (step, line["validation"]["score"]) for step, line in zip(steps, lines, strict=True) if "validation" in line
    ]
    ratios = (3, 3, 1) if validated else (6, 1)
    panels = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    losses, rates = panels[0], panels[-1]
    _plot(losses, steps, [line.get("loss") for line in lines], "loss", "#222222", width=1.5)
    terms = list(dict.fromkeys(name for line in lines for name in line.get("terms", {})))
    if len(terms) > 1:
        for number, name in enumerate(terms):
            values = [line.get("terms", {}).get(name) for line in lines]
            _plot(losses, steps, values, name, _COLOURS[number % len(_COLOURS)])
    losses.set_ylabel("loss")
    if validated:
        scores = panels[1]
        at, reached = zip(*validated, strict=True)
        _plot(scores, at, reached, "validation", _COLOURS[2], "o")
        scores.set_ylabel("validation score")
        scores.set_ylim(0, 1)
    _plot(rates, steps, [line.get("lr") for line in lines], "learning rate", _COLOURS[0])
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    for axes in panels:
        axes.grid(alpha=0.3)
        for border in borders:
            axes.axvline(border, color="#888888", linestyle=":")
    losses.legend(frameon=False)
    figure.savefig(path, format="png", dpi=100)


def _plot(
    axes: Axes,
    steps: Sequence[int],
    values: Sequence[float | None],
    label: str,
    colour: str,
    marker: str | None = None,
    width: float = 1.0,
) -> None:
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), label=label, color=colour, marker=marker, linewidth=width)


def _running_steps(lines: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Return each line's step counted over all stages, and the steps at which a new stage begins."""
    steps: list[int] = []
    borders: list[int] = []
    for number, line in enumerate(lines):
        if number and line["stage"] != lines[number - 1]["stage"]:
            borders.append(steps[-1])
        steps.append(int(line["step"]) + (borders[-1] if borders else 0))
    return steps, borders
