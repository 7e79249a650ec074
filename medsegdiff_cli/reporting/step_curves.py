"""Curves of scores by step, after Figure 4 of Fu et al. 2023; apart from tables, for matplotlib is slow to import."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.scores import Statistic
from medsegdiff_cli.artifacts.step_scores import METRICS, CurvePoint, MemberSpread, StepScores

_PANEL_INCHES = (4.5, 3.6)
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442")  # Okabe & Ito: safe for colour-blind
_NAMES = {"dice": "Dice", "hd95_max": "HD95"}
_BETTER = {"dice": "↑", "hd95_max": "↓"}


def draw_step_curves(path: Path, scores: StepScores) -> None:
    """Draw Dice and HD95 by step: means over cases with their standard errors, and below the spread of members.

    Raises:
        ResourceError: the file cannot be written.
    """
    by_step = [spread for spread in scores.spreads if spread.step is not None]
    rows: list[tuple[str, Sequence[CurvePoint | MemberSpread]]] = []
    rows += [("", scores.curves)] if scores.curves else []
    rows += [(f"largest - smallest of {scores.members} members: ", by_step)] if by_step else []
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(METRICS), height * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(METRICS), squeeze=False)
    unit = "/".join(scores.distance_units)
    for (words, points), line in zip(rows, panels, strict=True):
        for metric, axes in zip(METRICS, line, strict=True):
            _draw_panel(axes, [point for point in points if point.metric == metric])
            axes.set_title(_NAMES[metric] + ("" if words else f" {_BETTER[metric]}"), fontsize="medium")
            axes.set_ylabel(f"{words}{_NAMES[metric]}{f' ({unit})' if metric == 'hd95_max' else ''}", fontsize="small")
    figure.suptitle(f"{len(scores.cases)} cases: means, with standard errors", fontsize="medium")
    with atomic.staged(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_panel(axes: Axes, points: Sequence[CurvePoint | MemberSpread]) -> None:
    names = list(dict.fromkeys(point.class_name for point in points))
    ticks: dict[int, int] = {}
    for number, name in enumerate(names):
        own = [point for point in points if point.class_name == name and point.values.mean is not None]
        steps = [point.step or 0 for point in own]
        means = [point.values.mean or 0.0 for point in own]
        ticks |= {point.step or 0: point.timestep or 0 for point in own}
        is_mean = name is None
        colour = "#222222" if is_mean else _COLOURS[(number - 1) % len(_COLOURS)]
        label = "mean over classes" if is_mean and len(names) > 1 else name
        axes.plot(steps, means, marker="o", color=colour, linewidth=2 if is_mean else 1, label=label, markersize=4)
        if is_mean:
            errors = [_standard_error(point.values) for point in own]
            lower = [mean - error for mean, error in zip(means, errors, strict=True)]
            upper = [mean + error for mean, error in zip(means, errors, strict=True)]
            axes.fill_between(steps, lower, upper, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(list(ticks), [f"{step}\nt={timestep}" for step, timestep in ticks.items()], fontsize="small")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize="small")


def _standard_error(values: Statistic) -> float:
    return 0.0 if values.std is None else float(values.std / values.n**0.5)
