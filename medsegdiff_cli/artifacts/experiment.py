"""Experiments of a paper as data: what was published, what is trained here, and what must come out for it to hold.

One YAML file a paper (`plans/experiments/PAPER.yaml`). Everything that decides on a verdict stands in it before any
score exists: data, budget, seeds, sign and margin. Differences are in points: a Dice of 0.91 is 91 points.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medsegdiff_cli.artifacts.document import StrictModel, read_yaml, validate
from medsegdiff_cli.errors import UsageError, did_you_mean

Metric = Literal["dice", "iou", "precision", "recall"]
TierName = Literal["quick", "full"]


class Arm(StrictModel):
    """One trained model, and the timesteps that it predicts with.

    Attributes:
        labels: labelled cases that it was trained on.
        step: the single timestep that it was trained on; None for the method's own.
        timesteps: those that vote in prediction; None for all.
    """

    method: str
    labels: int = Field(ge=1)
    step: int | None = None
    timesteps: tuple[int, ...] | None = None

    @property
    def run(self) -> str:
        """Name of the training, without the timesteps of prediction."""
        return f"{self.method}-n{self.labels}" + ("" if self.step is None else f"-t{self.step}")

    @property
    def name(self) -> str:
        """Name of the predictions."""
        return self.run if self.timesteps is None else f"{self.run}-only-{'-'.join(map(str, self.timesteps))}"


class _Criterion(StrictModel):
    """What all criteria share: a cell is one of the domains with one of the label budgets.

    Attributes:
        domains: scanners whose test images count.
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


class PairedGain(_Criterion):
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


class StepTrend(_Criterion):
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


class VoteGain(_Criterion):
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


class PrecisionTrade(_Criterion):
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


Criterion = Annotated[PairedGain | StepTrend | VoteGain | PrecisionTrade, Field(discriminator="kind")]


class Experiment(StrictModel):
    """One published trend.

    Attributes:
        claim: in a sentence.
        published: the paper's numbers and where they stand.
        gate: whether a failure fails the command; else it is reported only.
    """

    id: str
    claim: str
    published: str
    gate: bool
    criterion: Criterion

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that must be trained and predicted with, on each of the criterion's domains."""
        return tuple(arm for n in self.criterion.trained for arm in self.criterion.arms_of(n))

    def within(self, budgets: tuple[int, ...]) -> "Experiment | None":
        """Return the experiment at those of its label budgets that are among `budgets`; None when there are none."""
        criterion = self.criterion
        kept: dict[str, Any] = {"labels": tuple(n for n in criterion.labels if n in budgets)}
        if isinstance(criterion, PairedGain):
            kept["also"] = tuple(n for n in criterion.also if n in budgets)
            kept["floors"] = {n: floor for n, floor in criterion.floors.items() if n in budgets}
        return self.model_copy(update={"criterion": criterion.model_copy(update=kept)}) if kept["labels"] else None


class Cohort(StrictModel):
    """Chest phantoms; the mappings go from a scanner to a number of cases.

    Attributes:
        shape: pixels (y, x).
        labelled: the pool that label budgets are drawn from.
        test: the same persons on every scanner.
    """

    shape: tuple[int, int]
    labelled: dict[str, int]
    unlabelled: dict[str, int]
    test: dict[str, int]


class Budget(StrictModel):
    """How a training of the experiments is made.

    Attributes:
        preset: of the recipes.
        overrides: setting to value, as `--set`.
        methods: overrides of single methods, on top.
    """

    preset: str = "paper"
    overrides: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def settings_of(self, method: str) -> dict[str, str]:
        """Return the overrides of a method's training, as the words of `--set`."""
        chosen = {**self.overrides, **self.methods.get(method, {})}
        return {key: json.dumps(value) for key, value in chosen.items()}


class Tier(StrictModel):
    """How much of a declaration is run.

    Attributes:
        seeds: how many, each with phantoms, labels and trainings of its own.
        first_seed: the others follow it.
        experiments: ids.
        labels: label budgets that are trained; criteria keep those of theirs that are among them.
        minutes: the time it is meant for, in words.
    """

    seeds: int = Field(ge=1)
    first_seed: int = Field(default=0, ge=0)
    experiments: tuple[str, ...] = Field(min_length=1)
    labels: tuple[int, ...] = Field(min_length=1)
    minutes: str


class Declaration(StrictModel):
    """The experiments of one paper, fixed before they are run.

    Attributes:
        objective: pretraining that all arms of a seed share.
        plan: content of `planning.overrides.PlanOverrides`.
        heads: budget of every method that starts from the pretraining.
        deviations: what differs from the paper, as sentences.
    """

    paper: str
    title: str
    citation: str
    cohort: Cohort
    plan: dict[str, Any]
    objective: str
    pretraining: Budget
    heads: Budget
    tiers: dict[TierName, Tier]
    experiments: tuple[Experiment, ...] = Field(min_length=1)
    deviations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> "Declaration":
        ids = [experiment.id for experiment in self.experiments]
        if len(set(ids)) < len(ids):
            raise ValueError("two experiments have one id")
        for name, tier in self.tiers.items():
            if unknown := set(tier.experiments) - set(ids):
                raise ValueError(f"tier '{name}' names no experiment: {sorted(unknown)}")
        pool = sum(self.cohort.labelled.values())
        for experiment in self.experiments:
            if unknown := set(experiment.criterion.domains) - set(self.cohort.test):
                raise ValueError(f"{experiment.id} names scanners without test images: {sorted(unknown)}")
            if max(experiment.criterion.trained) > pool:
                raise ValueError(f"{experiment.id} wants more labels than the {pool} there are")
        return self

    def tier(self, name: TierName) -> Tier:
        """Return a tier.

        Raises:
            UsageError: the paper has none of that name.
        """
        if name not in self.tiers:
            raise UsageError(
                f"'{self.paper}' has no tier '{name}'", where="msd reproduce", fix=did_you_mean(name, self.tiers)
            )
        return self.tiers[name]

    def chosen(self, tier: Tier) -> tuple[Experiment, ...]:
        """Return the experiments of a tier, cut to its label budgets."""
        asked = (item.within(tier.labels) for item in self.experiments if item.id in tier.experiments)
        return tuple(item for item in asked if item is not None)


def cells_demanded(share: float) -> str:
    """Return a share of the cells as a person would write it."""
    thirds = {1 / 3: "1/3", 2 / 3: "2/3", 1.0: "all"}
    return next((word for value, word in thirds.items() if math.isclose(value, share, abs_tol=1e-3)), f"{share:.0%}")


def read_declaration(path: Path) -> Declaration:
    """Read the experiments of a paper.

    Raises:
        UsageError: wrong or unknown keys.
    """
    return validate(Declaration, read_yaml(path), str(path))
