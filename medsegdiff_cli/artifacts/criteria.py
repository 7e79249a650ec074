"""What the criteria of all papers share; a cell is one of the domains with one of the label budgets."""

import math
from collections.abc import Collection
from typing import Any, Self

from pydantic import Field

from medsegdiff_cli.artifacts.document import StrictModel
from medsegdiff_cli.artifacts.experiment_arms import Arm


class CellCriterion(StrictModel):
    """What must come out of the arms in some cells.

    Attributes:
        domains: kinds of test images that count.
        labels: label budgets.
    """

    domains: tuple[str, ...] = Field(min_length=1)
    labels: tuple[int, ...] = Field(min_length=1)

    @property
    def trained(self) -> tuple[int, ...]:
        """All label budgets that arms are needed at."""
        return self.labels

    @property
    def in_cells(self) -> str:
        """The cells in words."""
        return f"{', '.join(self.domains)}; n = {', '.join(map(str, self.labels))}"

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the arms that are compared at a label budget."""
        raise TypeError(f"{type(self).__name__} compares nothing")

    def kept(self, budgets: Collection[int], methods: Collection[str] | None) -> dict[str, Any]:
        """Return the fields that a smaller tier changes; see `within`."""
        return {"labels": tuple(n for n in self.labels if n in budgets)}

    def within(self, budgets: Collection[int], methods: Collection[str] | None = None) -> Self | None:
        """Return the criterion cut to a tier; None when none of its label budgets is among `budgets`.

        Args:
            methods: of those that it reports beside, the ones that are trained; None for all.
        """
        kept = self.kept(budgets, methods)
        return self.model_copy(update=kept) if kept["labels"] else None


def cells_demanded(share: float) -> str:
    """Return a share of the cells as a person would write it."""
    thirds = {1 / 3: "1/3", 2 / 3: "2/3", 1.0: "all"}
    return next((word for value, word in thirds.items() if math.isclose(value, share, abs_tol=1e-3)), f"{share:.0%}")
