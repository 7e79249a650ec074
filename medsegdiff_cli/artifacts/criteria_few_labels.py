"""Criteria about few labels and other scanners: methods, timesteps and votes compared in cells."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from medsegdiff_cli.artifacts.criteria import CellCriterion, cells_demanded
from medsegdiff_cli.artifacts.experiment_arms import Arm

Metric = Literal["dice", "iou", "precision", "recall"]


class PairedGain(CellCriterion):
    """`method` minus `other`, case by case.

    Attributes:
        above: the mean over all cells must be above it, in points; None demands nothing.
        cells_share: so many of the cells must have a mean difference above `cell_margin`; None demands nothing.
        floors: label budget to the least mean difference over its cells.
        also: label budgets whose mean difference is reported beside, and counts for nothing.
        ceiling: where `other` has a greater mean in any domain, there is no room and the criterion does not apply.
    """

    kind: Literal["paired-gain"]
    method: str
    other: str
    metric: Metric = "dice"
    above: float | None = None
    cells_share: float | None = Field(default=None, gt=0, le=1)
    cell_margin: float = 0.0
    floors: dict[int, float] = Field(default_factory=dict)
    also: tuple[int, ...] = ()
    ceiling: float | None = None

    @property
    def trained(self) -> tuple[int, ...]:
        """All label budgets that arms are needed at."""
        return (*self.labels, *self.also)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return both methods."""
        return Arm(method=self.method, labels=labels), Arm(method=self.other, labels=labels)

    def kept(self, budgets: Collection[int], methods: Collection[str] | None) -> dict[str, Any]:
        """Return the fields that a smaller tier changes."""
        return {
            **super().kept(budgets, methods),
            "also": tuple(n for n in self.also if n in budgets),
            "floors": {n: floor for n, floor in self.floors.items() if n in budgets},
        }

    @property
    def in_words(self) -> str:
        """What must come out."""
        demands = [] if self.above is None else [f"mean > {self.above:g}"]
        if self.cells_share is not None:
            demands.append(f"> {self.cell_margin:g} in {cells_demanded(self.cells_share)} of the cells")
        demands += [f"n = {n}: mean >= {floor:g}" for n, floor in sorted(self.floors.items())]
        if self.ceiling is not None:
            demands.append(f"only where {self.other} <= {self.ceiling:g} in each domain")
        return f"{self.method} - {self.other} ({self.in_cells}): {'; '.join(demands)}"


class StepTrend(CellCriterion):
    """How the score of classifiers of a single timestep falls with the timestep.

    Attributes:
        steps: timesteps, ascending; a classifier is trained on each.
        correlation_below: Spearman's rank correlation of timestep and cell mean must be below it.
        drop: first minus last timestep must be at least so many points.
    """

    kind: Literal["step-trend"]
    method: str
    steps: tuple[int, ...] = Field(min_length=2)
    correlation_below: float = 0.0
    drop: float

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return a classifier a timestep."""
        return tuple(Arm(method=self.method, labels=labels, step=step) for step in self.steps)

    @property
    def in_words(self) -> str:
        """What must come out."""
        first, last = self.steps[0], self.steps[-1]
        return (
            f"{self.method} ({self.in_cells}): Spearman(t, Dice) < {self.correlation_below:g}; "
            f"t = {first} minus t = {last} >= {self.drop:g}"
        )


class VoteGain(CellCriterion):
    """The vote of all timesteps against the best single one of some, chosen in each cell by its score.

    Attributes:
        singles: timesteps that predict alone.
        cells_share, cell_margin: so many of the cells must have a mean difference above the margin.
    """

    kind: Literal["vote-gain"]
    method: str
    singles: tuple[int, ...] = Field(min_length=1)
    cells_share: float = Field(gt=0, le=1)
    cell_margin: float = 0.0

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the vote, then each single timestep."""
        alone = (Arm(method=self.method, labels=labels, timesteps=(step,)) for step in self.singles)
        return Arm(method=self.method, labels=labels), *alone

    @property
    def in_words(self) -> str:
        """What must come out."""
        return (
            f"{self.method}: vote - best of t = {', '.join(map(str, self.singles))} ({self.in_cells}): "
            f"> {self.cell_margin:g} in {cells_demanded(self.cells_share)} of the cells"
        )


class PrecisionTrade(CellCriterion):
    """`method` gains precision over `other`, and more of it than it gives or takes in recall."""

    kind: Literal["precision-trade"]
    method: str
    other: str

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return both methods."""
        return Arm(method=self.method, labels=labels), Arm(method=self.other, labels=labels)

    @property
    def in_words(self) -> str:
        """What must come out."""
        return f"{self.method} - {self.other} ({self.in_cells}): precision > 0 and > |recall|"
