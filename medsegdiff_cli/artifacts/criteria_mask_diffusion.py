"""Criteria about walks from noise to a mask: strategies, steps, draws and samplers on the same test images."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from medsegdiff_cli.artifacts.criteria import CellCriterion
from medsegdiff_cli.artifacts.experiment_arms import Arm, LeakProbe, WalkProbe

SamplerName = Literal["ddpm", "ddim", "dpm++"]


class _OfWalks(CellCriterion):
    """What criteria of walks share.

    Attributes:
        method: whose trend was published.
        sampler, steps: how the methods walk, where the criterion is not about that.
    """

    method: str
    sampler: SamplerName = "ddpm"
    steps: int = Field(default=5, ge=2)

    def walk(self, method: str, labels: int, *, draws: int = 1, **changes: Any) -> Arm:
        """Return the arm of a method's walks as declared, but for `changes`.

        One draw serves several criteria: its last step is the prediction (a test holds the two equal), and the Dice
        after each step comes with it.
        """
        content = {"sampler": self.sampler, "sampling_steps": self.steps, "probe": WalkProbe(draws=draws), **changes}
        return Arm(method=method, labels=labels, **content)


class BestStrategy(_OfWalks):
    """`method` beats `other`, and no strategy beats it by much.

    Attributes:
        p_below: of the one-sided Wilcoxon signed-rank test over test images, each averaged over the seeds.
        rivals: all other strategies; `other` is among them.
        margin: no rival's mean is higher by more points.
    """

    kind: Literal["best-strategy"]
    other: str
    rivals: tuple[str, ...] = Field(min_length=1)
    p_below: float = Field(gt=0, lt=1)
    margin: float = Field(ge=0)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the method, then each rival."""
        return tuple(self.walk(method, labels) for method in (self.method, *self.rivals))

    @property
    def in_words(self) -> str:
        """What must come out."""
        return (
            f"{self.method} - {self.other} ({self.in_cells}): mean > 0, one-sided Wilcoxon p < {self.p_below:g} over "
            f"test images averaged over seeds; {self.method} >= every strategy - {self.margin:g}"
        )


class SteadySteps(_OfWalks):
    """The score does not fall on the walk.

    Attributes:
        fall: the last step's mean may be so many points below the first one's.
        largest_drop: no step's mean is lower than any earlier one's by more points.
        beside: methods that are reported, and count for nothing.
    """

    kind: Literal["steady-steps"]
    fall: float = Field(ge=0)
    largest_drop: float = Field(ge=0)
    beside: tuple[str, ...] = ()

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the method, then those beside it."""
        return tuple(self.walk(name, labels) for name in (self.method, *self.beside))

    def kept(self, budgets: Collection[int], methods: Collection[str] | None) -> dict[str, Any]:
        """Return the fields that a smaller tier changes."""
        beside = tuple(name for name in self.beside if methods is None or name in methods)
        return {**super().kept(budgets, methods), "beside": beside}

    @property
    def in_words(self) -> str:
        """What must come out."""
        return (
            f"{self.method} ({self.in_cells}): step {self.steps} - step 1 >= {-self.fall:g}; "
            f"no step below an earlier one by more than {self.largest_drop:g}"
        )


class LeakMargin(_OfWalks):
    """Fed a wrong mask, `other` follows it and `method` does not.

    Attributes:
        timesteps: that the mask is noised to; the margin must be there at each.
        also: timesteps that are reported, and count for nothing.
        shift_voxels: how wrong the mask is.
        least: margin in points, Dice to the fed mask of `other` minus that of `method`.
    """

    kind: Literal["leak-margin"]
    other: str
    timesteps: tuple[int, ...] = Field(min_length=1)
    also: tuple[int, ...] = ()
    shift_voxels: int = Field(ge=1)
    least: float

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return both methods."""
        probe = LeakProbe(timesteps=(*self.timesteps, *self.also), shift_voxels=self.shift_voxels)
        return tuple(Arm(method=method, labels=labels, probe=probe) for method in (self.method, self.other))

    @property
    def in_words(self) -> str:
        """What must come out."""
        timesteps = ", ".join(map(str, self.timesteps))
        return (
            f"fed the true mask shifted by {self.shift_voxels} voxels and noised to t ({self.in_cells}): Dice to the "
            f"fed mask, {self.other} - {self.method} >= {self.least:g} at each t = {timesteps}"
        )


class StepCounts(_OfWalks):
    """The number of sampling steps hardly matters.

    Attributes:
        counts: numbers of steps.
        spread: largest minus smallest mean, in points, at most.
    """

    kind: Literal["step-counts"]
    counts: tuple[int, ...] = Field(min_length=2)
    spread: float = Field(ge=0)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the method with each number of steps."""
        return tuple(self.walk(self.method, labels, sampling_steps=count) for count in self.counts)

    @property
    def in_words(self) -> str:
        """What must come out."""
        counts = ", ".join(map(str, self.counts))
        return f"{self.method} with {counts} steps ({self.in_cells}): largest - smallest mean <= {self.spread:g}"


class DrawRange(_OfWalks):
    """Walks from different noise end closer together than they begin.

    Attributes:
        draws: walks of each test image.
        ratio: the mean range of Dice over the draws after the last step is at most so much of that after the first.
    """

    kind: Literal["draw-range"]
    draws: int = Field(ge=2)
    ratio: float = Field(gt=0)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the method."""
        return (self.walk(self.method, labels, draws=self.draws),)

    @property
    def in_words(self) -> str:
        """What must come out."""
        return (
            f"{self.method} ({self.in_cells}): mean over images of largest - smallest Dice of {self.draws} draws, "
            f"after step {self.steps} <= {self.ratio:g} x after step 1"
        )


class SamplerGap(_OfWalks):
    """The sampler hardly matters, and less than to `other`.

    Attributes:
        samplers: the two that are compared.
        largest: difference of the means, in points, at most.
        beyond: the difference may exceed that of `other` by so many points.
    """

    kind: Literal["sampler-gap"]
    other: str
    samplers: tuple[SamplerName, SamplerName] = ("ddpm", "ddim")
    largest: float = Field(ge=0)
    beyond: float = Field(ge=0)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return both samplers of the method, then of the other."""
        pairs = ((method, sampler) for method in (self.method, self.other) for sampler in self.samplers)
        return tuple(self.walk(method, labels, sampler=sampler) for method, sampler in pairs)

    @property
    def in_words(self) -> str:
        """What must come out."""
        gap = " - ".join(self.samplers)
        return (
            f"|{gap}| ({self.in_cells}): {self.method} <= {self.largest:g} "
            f"and <= that of {self.other} + {self.beyond:g}"
        )


class Parity(_OfWalks):
    """`method` is as good as a network without diffusion.

    Attributes:
        other: method that does not walk.
        within_points: difference of the means at most.
    """

    kind: Literal["parity"]
    other: str
    within_points: float = Field(ge=0)

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return both methods."""
        return self.walk(self.method, labels), Arm(method=self.other, labels=labels)

    @property
    def in_words(self) -> str:
        """What must come out."""
        return f"|{self.method} - {self.other}| ({self.in_cells}): <= {self.within_points:g}"


class Between(_OfWalks):
    """`method` lies between two others."""

    kind: Literal["between"]
    lower: str
    upper: str

    def arms_of(self, labels: int) -> tuple[Arm, ...]:
        """Return the lower, the method, the upper."""
        return tuple(self.walk(method, labels) for method in (self.lower, self.method, self.upper))

    @property
    def in_words(self) -> str:
        """What must come out."""
        return f"{self.lower} <= {self.method} <= {self.upper} ({self.in_cells})"
