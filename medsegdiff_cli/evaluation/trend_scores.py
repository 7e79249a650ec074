"""Scores of an experiment's arms, and the arithmetic that all criteria share: differences, means, intervals, cells."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medsegdiff_cli.artifacts.experiment_arms import Arm
from medsegdiff_cli.artifacts.reproduction import CellFinding
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.metrics.paired import bootstrap_interval

POINTS = 100.0
_SEED = 0


class Person(NamedTuple):
    """A test person (or image) of a seed.

    Attributes:
        unit: what is resampled as a whole: the person of the seed, or one image with all its seeds.
    """

    seed: int
    name: str
    unit: Hashable


@dataclass(frozen=True)
class ArmScores:
    """Scores of every arm on every test image.

    Attributes:
        values: (seed, arm's name, domain) to person to metric to value, a share of 1.
        same_tests: whether persons of one name are one test image in all seeds.
    """

    values: Mapping[tuple[int, str, str], Mapping[str, Mapping[str, float]]]
    same_tests: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(sorted({seed for seed, _, _ in self.values}))

    def of(self, arm: Arm, domain: str, metric: str = "dice") -> dict[Person, float]:
        """Return the points of each person, in a fixed order.

        Raises:
            InputDataError: the arm was not scored there.
        """
        found = {
            Person(seed, name, name if self.same_tests else (seed, name)): POINTS * scores[metric]
            for seed in self.seeds
            for name, scores in sorted(self.values.get((seed, arm.name, domain), {}).items())
        }
        if not found:
            raise InputDataError(f"no scores of {arm.name} on {domain}", fix="run the same command again")
        return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an evaluator found: the criterion's answer, and the differences that `measured` is the mean of."""

    met: bool | None
    quantity: str
    differences: Sequence[Mapping[Person, float]]
    cells: tuple[CellFinding, ...]
    notes: tuple[str, ...] = ()


def minus(mine: Mapping[Person, float], theirs: Mapping[Person, float], factor: float = 1.0) -> dict[Person, float]:
    """Return the difference of each person, `mine - factor * theirs`.

    Raises:
        InputDataError: the persons are not the same.
    """
    if set(mine) != set(theirs):
        raise InputDataError("two arms were scored on different persons", fix="run the same command again")
    return {person: value - factor * theirs[person] for person, value in mine.items()}


def mean(parts: Sequence[Mapping[Person, float]]) -> float:
    """Return the mean over all cells and persons."""
    return float(np.mean([value for part in parts for value in part.values()]))


def mean_of_seed(parts: Sequence[Mapping[Person, float]], seed: int) -> float:
    """Return the mean over all cells and the persons of a seed."""
    return float(np.mean([value for part in parts for person, value in part.items() if person.seed == seed]))


def interval(parts: Sequence[Mapping[Person, float]]) -> tuple[float, float, float]:
    """Return the mean over cells and persons and its interval, whole persons resampled."""
    values = [value for part in parts for value in part.values()]
    units = [person.unit for part in parts for person in part]
    low, high = bootstrap_interval(values, _SEED, groups=units)
    return float(np.mean(values)), low, high


def cell(
    domain: str,
    labels: int,
    values: Mapping[str, Mapping[Person, float]],
    difference: Mapping[Person, float] | None,
    row: str = "",
) -> CellFinding:
    """Return the means of a cell, or of one row of it, and its difference with an interval."""
    means = {name: mean([points]) for name, points in values.items()}
    if difference is None:
        return CellFinding(domain=domain, labels=labels, row=row, means=means)
    middle, low, high = interval([difference])
    return CellFinding(domain=domain, labels=labels, row=row, means=means, difference=middle, low=low, high=high)
