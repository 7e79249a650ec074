"""A reproduction: what came of a paper's experiments; `reproduction.json`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.artifacts.experiment import Declaration, TierName
from medsegdiff_cli.errors import InputDataError

Verdict = Literal["holds", "does not hold", "not applicable", "report-only"]


class CellFinding(StrictModel):
    """One domain and label budget, or a row of several in it, over all seeds and test persons.

    Attributes:
        row: which of several comparisons in one domain with one label budget; "" where there is one.
        means: arm (and metric, where there are several) to mean, in points.
        difference: what the criterion looks at, in points; None where it looks at no difference of a cell.
        low: of its 95 % bootstrap interval over persons, as `high`.
    """

    domain: str
    labels: int
    row: str = ""
    means: dict[str, float]
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Finding(StrictModel):
    """What came of one experiment.

    Attributes:
        criterion: in words.
        met: whether the criterion is met, also of what is reported only; None when it does not apply.
        quantity: what `measured` is, in words.
        measured: in points, as `low` and `high`, its 95 % bootstrap interval over test persons.
        decimals: to show of it.
        per_seed: seed to `measured` of that seed alone: trainings differ by more than test persons do.
        notes: sentences to print beside it.
    """

    id: str
    claim: str
    published: str
    criterion: str
    gate: bool
    verdict: Verdict
    met: bool | None
    quantity: str
    measured: float
    low: float
    high: float
    decimals: int = 1
    per_seed: dict[int, float]
    cells: tuple[CellFinding, ...]
    notes: tuple[str, ...] = ()


class Reproduction(StrictModel):
    """All findings, with what is needed to make them again.

    Attributes:
        declaration: as it was when the folder was begun.
        command: makes the folder again.
        test_persons: of one seed.
    """

    schema_version: Literal[1] = 1
    paper: str
    title: str
    citation: str
    tier: TierName
    seeds: tuple[int, ...]
    test_persons: int
    msd_version: str
    command: str
    declaration: Declaration
    declaration_digest: str
    findings: tuple[Finding, ...] = Field(min_length=1)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the gates that do not hold."""
        return tuple(finding.id for finding in self.findings if finding.gate and finding.verdict == "does not hold")


def write_reproduction(path: Path, reproduction: Reproduction) -> None:
    """Write `reproduction.json` atomically."""
    atomic.write_json(path, reproduction.model_dump(mode="json"))


def read_reproduction(path: Path) -> Reproduction:
    """Read `reproduction.json`.

    Raises:
        InputDataError: missing, damaged, or of another version.
    """
    return validate(Reproduction, read_json(path), str(path), InputDataError)
