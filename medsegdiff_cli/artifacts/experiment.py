"""Experiments of a paper as data: what was published, what is trained here, and what must come out for it to hold.

One YAML file a paper (`plans/experiments/PAPER.yaml`). Everything that decides on a verdict stands in it before any
score exists: data, budget, seeds, sign and margin. Differences are in points: a Dice of 0.91 is 91 points.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medsegdiff_cli.artifacts.cohorts import Blobs, Cohort
from medsegdiff_cli.artifacts.criteria_few_labels import PairedGain, PrecisionTrade, StepTrend, VoteGain
from medsegdiff_cli.artifacts.criteria_mask_diffusion import (
    BestStrategy,
    Between,
    DrawRange,
    LeakMargin,
    Parity,
    SamplerGap,
    SteadySteps,
    StepCounts,
)
from medsegdiff_cli.artifacts.criteria_pretraining import AheadOf
from medsegdiff_cli.artifacts.document import StrictModel, read_yaml, validate
from medsegdiff_cli.artifacts.experiment_arms import Arm
from medsegdiff_cli.errors import UsageError, did_you_mean

TierName = Literal["quick", "full"]
_FewLabels = PairedGain | StepTrend | VoteGain | PrecisionTrade
_MaskDiffusion = BestStrategy | SteadySteps | LeakMargin | StepCounts | DrawRange | SamplerGap | Parity | Between
Criterion = Annotated[_FewLabels | _MaskDiffusion | AheadOf, Field(discriminator="kind")]


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

    def within(self, budgets: Collection[int], methods: Collection[str] | None = None) -> "Experiment | None":
        """Return the experiment cut to a tier, see `CellCriterion.within`; None when nothing is left."""
        criterion = self.criterion.within(budgets, methods)
        return None if criterion is None else self.model_copy(update={"criterion": criterion})


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
        methods: of those that criteria report beside, the ones that are trained; None for all.
        minutes: the time it is meant for, in words.
    """

    seeds: int = Field(ge=1)
    first_seed: int = Field(default=0, ge=0)
    experiments: tuple[str, ...] = Field(min_length=1)
    labels: tuple[int, ...] = Field(min_length=1)
    methods: tuple[str, ...] | None = None
    minutes: str

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A declaration without it keeps its digest, and the results that are known by it.
        return {key: value for key, value in dump(self).items() if key != "methods" or value is not None}


class Declaration(StrictModel):
    """The experiments of one paper, fixed before they are run.

    Attributes:
        objective: pretraining that all arms of a seed share; None where they share none.
        objectives: method to the pretraining that it starts from; the others start from random weights.
        pretraining: budget of every pretraining; its `methods` are objectives.
        plan: content of `planning.overrides.PlanOverrides`.
        heads: budget of every method; those of a paper without pretraining may call it `training`.
        deviations: what differs from the paper, as sentences.
    """

    paper: str
    title: str
    citation: str
    cohort: Cohort
    plan: dict[str, Any]
    objective: str | None = None
    objectives: dict[str, str] = Field(default_factory=dict)
    pretraining: Budget | None = None
    heads: Budget = Field(validation_alias=AliasChoices("heads", "training"))
    tiers: dict[TierName, Tier]
    experiments: tuple[Experiment, ...] = Field(min_length=1)
    deviations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> "Declaration":
        if self.objective is not None and self.objectives:
            raise ValueError("give objective or objectives")
        if bool(self.objective or self.objectives) != (self.pretraining is not None):
            raise ValueError("objective and pretraining come together")
        ids = [experiment.id for experiment in self.experiments]
        if len(set(ids)) < len(ids):
            raise ValueError("two experiments have one id")
        for name, tier in self.tiers.items():
            if unknown := set(tier.experiments) - set(ids):
                raise ValueError(f"tier '{name}' names no experiment: {sorted(unknown)}")
        if isinstance(self.cohort, Blobs):
            for name, tier in self.tiers.items():
                if self.cohort.test_seed in range(tier.first_seed, tier.first_seed + tier.seeds):
                    raise ValueError(f"tier '{name}' trains on the test images: a seed is test_seed")
        pool = self.cohort.pool
        for experiment in self.experiments:
            if unknown := set(experiment.criterion.domains) - set(self.cohort.domains):
                raise ValueError(f"{experiment.id} names scanners without test images: {sorted(unknown)}")
            if max(experiment.criterion.trained) > pool:
                raise ValueError(f"{experiment.id} wants more labels than the {pool} there are")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A declaration without them keeps its digest, and the results that are known by it.
        return {key: value for key, value in dump(self).items() if key != "objectives" or value}

    def objective_of(self, method: str) -> str | None:
        """Return the pretraining that a method's arms start from, or None."""
        return self.objective or self.objectives.get(method)

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
        asked = (item.within(tier.labels, tier.methods) for item in self.experiments if item.id in tier.experiments)
        return tuple(item for item in asked if item is not None)


def read_declaration(path: Path) -> Declaration:
    """Read the experiments of a paper.

    Raises:
        UsageError: wrong or unknown keys.
    """
    return validate(Declaration, read_yaml(path), str(path))
