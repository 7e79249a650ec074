"""Criteria about pretrainings: which start of a training is ahead of which."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, model_validator

from medsegdiff_cli.artifacts.criteria import CellCriterion, cells_demanded
from medsegdiff_cli.artifacts.criteria_few_labels import Metric
from medsegdiff_cli.artifacts.experiment_arms import Arm


class AheadOf(CellCriterion):
    """Each of some methods against each of some others, test person by test person.

    Attributes:
        methods, others: every pair of the two is compared.
        margin: no method's mean over all cells may be below another's by more points; None demands nothing.
        above: the mean difference over all pairs must be above it, in points; None demands nothing.
        seeds_share: in so many of the seeds the mean difference over all pairs must be above 0; None demands nothing.
    """

    kind: Literal["ahead-of"]
    methods: tuple[str, ...] = Field(min_length=1)
    others: tuple[str, ...] = Field(min_length=1)
    metric: Metric = "iou"
    margin: float | None = None
    above: float | None = None
    seeds_share: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _demands_something(self) -> "AheadOf":
        if self.margin is None and self.above is None and self.seeds_share is None:
            raise ValueError("margin, above or seeds_share must say what is demanded")
        return self

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the methods, then the others."""
        return tuple(Arm(method=name, labels=labels) for name in (*self.methods, *self.others))

    def kept(self, budgets: Collection[int], methods: Collection[str] | None) -> dict[str, Any]:
        """Return the fields that a smaller tier changes."""
        trained = tuple(name for name in self.methods if methods is None or name in methods)
        return {**super().kept(budgets, methods), "methods": trained or self.methods}

    @property
    def in_words(self) -> str:
        """What must come out."""
        demands = []
        if self.margin is not None:
            demands.append(f"each pair's mean >= {0 - self.margin:g}")
        if self.above is not None:
            demands.append(f"mean of all pairs > {self.above:g}")
        if self.seeds_share is not None:
            demands.append(f"mean > 0 in {cells_demanded(self.seeds_share)} of the seeds")
        return f"{_listed(self.methods)} - {_listed(self.others)} ({self.in_cells}): {'; '.join(demands)}"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}"
