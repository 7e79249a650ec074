"""A comparison: paired differences between sets of scores; what `msd compare` prints and writes.

The JSON object has the fields of `Comparison`; the CSV has one line a row, and what all rows share in its last columns.
An undefined number is null in JSON and an empty cell in CSV.
"""

import csv
import io
from pathlib import Path
from typing import Literal

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel
from medsegdiff_cli.artifacts.spreadsheet import cell


class ComparisonRow(StrictModel):
    """One class of one set of scores against the baseline, in all shared cases or in those of one domain.

    Attributes:
        scores: the compared set; differences are its values minus the baseline's.
        domain: None for all shared cases.
        n: cases with a value in both sets; all numbers of the row are about them.
        groups: patients among them, when whole patients are resampled and tested; else None.
        undefined: shared cases without a value in either set (the class is in neither prediction nor reference).
        undefined_in_one: shared cases with a value in one set only (it found the class where there is none).
        mean_baseline: as `mean` and `difference`, over cases, in the metric's unit.
        low: of the 95 % bootstrap interval of `difference`, as `high`; None below two cases or patients.
        p: two-sided and uncorrected; None when not tested, `note` then says why.
        p_corrected: for all tested rows of the comparison; it is compared with the plain alpha.
        wins: cases in which the compared set is better (greater, when no direction is better); losses likewise.
    """

    scores: str
    class_name: str
    domain: str | None
    n: int
    groups: int | None
    undefined: int
    undefined_in_one: int
    mean_baseline: float | None
    mean: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    is_significant: bool | None
    wins: int
    ties: int
    losses: int
    note: str = ""


class Unpaired(StrictModel):
    """Cases that are in one of two sets only, and therefore in no row."""

    only_in_baseline: tuple[str, ...]
    only_in_scores: tuple[str, ...]


class Comparison(StrictModel):
    """Everything that `msd compare` found out.

    Attributes:
        sources: label of each set of scores to its files.
        better: which direction of the metric is better; None for volumes and the like.
        rule: test, level and correction in words, with the paper's name where it is a paper's rule.
        family_size: rows that were tested, and for which p is corrected.
        resampled: what the bootstrap draws and the test takes as independent.
        unpaired: compared set to cases without a partner.
        warnings: sentences to print beside the rows.
    """

    schema_version: Literal[1] = 1
    baseline: str
    sources: dict[str, tuple[str, ...]]
    metric: str
    better: Literal["higher", "lower"] | None
    test: Literal["wilcoxon", "ttest"]
    alpha: float
    correction: Literal["holm", "bonferroni", "none"]
    family_size: int
    rule: str
    resampled: Literal["cases", "groups"]
    resamples: int
    seed: int
    rows: tuple[ComparisonRow, ...]
    unpaired: dict[str, Unpaired] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def write_comparison_csv(path: Path, comparison: Comparison) -> None:
    """Write the rows of a comparison as CSV, atomically."""
    shared = ("baseline", "metric", "test", "alpha", "correction", "family_size", "resampled", "resamples", "seed")
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([*ComparisonRow.model_fields, *shared])
    facts = [getattr(comparison, name) for name in shared]
    for row in comparison.rows:
        table.writerow(map(cell, (*row.model_dump().values(), *facts)))
    atomic.write_text(path, stream.getvalue())
