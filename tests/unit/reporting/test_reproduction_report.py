import io

from rich.console import Console

from medsegdiff_cli.artifacts.experiment import Declaration
from medsegdiff_cli.artifacts.reproduction import CellFinding, Finding, Reproduction
from medsegdiff_cli.reporting.reproduction_page import reproduction_markdown
from medsegdiff_cli.reporting.reproduction_table import reproduction_report

CRITERION = {"kind": "paired-gain", "method": "new", "other": "old", "domains": ("A",), "labels": (1,)}
DECLARATION = Declaration.model_validate(
    {
        "paper": "toy",
        "title": "A toy",
        "citation": "Nobody, nowhere",
        "cohort": {"shape": (16, 24), "labelled": {"A": 2}, "unlabelled": {"B": 30}, "test": {"A": 7}},
        "plan": {},
        "objective": "diffusion",
        "pretraining": {"overrides": {"steps": 9}},
        "heads": {"preset": "recommended", "methods": {"old": {"steps": 5}}},
        "tiers": {"full": {"seeds": 2, "experiments": ("R1",), "labels": (1,), "minutes": "one"}},
        "experiments": [{"id": "R1", "claim": "It wins", "published": "+3", "gate": True, "criterion": CRITERION}],
        "deviations": ("Phantoms stand for people.",),
    }
)


def finding(**changes: object) -> Finding:
    content = {
        "id": "R1",
        "claim": "It wins",
        "published": "+3 | Tab. 1",
        "criterion": "mean > 0",
        "gate": True,
        "verdict": "does not hold",
        "met": False,
        "quantity": "dice, new - old",
        "measured": -1.25,
        "low": -2.0,
        "high": 0.5,
        "per_seed": {0: -2.5, 1: 0.0},
        "cells": (
            CellFinding(domain="A", labels=1, means={"new": 80.04, "old": 81.3}, difference=-1.25, low=-2.0, high=0.5),
        ),
        "notes": ("above 0 in 0 of 1 cells",),
    }
    return Finding.model_validate({**content, **changes})


def reproduction(*findings: Finding, seeds: tuple[int, ...] = (0, 1)) -> Reproduction:
    return Reproduction(
        paper="toy",
        title="A toy",
        citation="Nobody, nowhere",
        tier="full",
        seeds=seeds,
        test_persons=7,
        msd_version="0",
        command="msd reproduce toy --full",
        declaration=DECLARATION,
        declaration_digest="abc",
        findings=findings,
    )


def shown(result: Reproduction) -> str:
    stream = io.StringIO()
    Console(file=stream, width=400).print(reproduction_report(result))
    return stream.getvalue()


def test_the_table_shows_verdict_interval_seeds_and_what_was_published() -> None:
    text = shown(reproduction(finding(), finding(id="R2", gate=False, verdict="report-only", met=True)))
    assert "dice, new - old: -1.2 (-2.0 to +0.5); by seed -2.5, +0.0" in text
    assert "does not hold" in text
    assert "report-only (met)" in text
    assert "+3 | Tab. 1" in text
    assert "7 test persons" in text
    assert "One seed" not in text


def test_one_seed_is_said_to_be_one() -> None:
    text = shown(reproduction(finding(per_seed={0: -1.25}), seeds=(0,)))
    assert "by seed" not in text
    assert "One seed: another training may turn any sign." in text


def test_the_page_has_verdicts_cells_protocol_and_deviations() -> None:
    lines = reproduction_markdown(reproduction(finding())).splitlines()
    assert lines[0] == "## toy: A toy"
    (row,) = [line for line in lines if line.startswith("| R1 ")]
    assert "+3 \\| Tab. 1" in row
    assert row.endswith("| mean > 0 | **does not hold** |")
    assert "| A | 1 | 80.0 | 81.3 | -1.2 (-2.0 to +0.5) |" in lines
    assert "- phantoms of 16 x 24 pixels a seed: labelled 2 on A, unlabelled 30 on B, test 7 on A" in lines
    assert "- pretraining `diffusion`: preset `paper`, `steps=9`" in lines
    assert "- old: `steps=5`" in lines
    assert lines[-1] == "- Phantoms stand for people."
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {7, 6}


def test_rows_of_a_cell_have_their_names_and_decimals_of_their_own() -> None:
    rows = [
        CellFinding(domain="blobs", labels=8, row=name, means={"first": 80.0, "last": last}, difference=last - 80)
        for name, last in (("new", 80.123), ("old", 79.5))
    ]
    rows = [row.model_copy(update={"low": -1.0, "high": 1.0}) for row in rows]
    blobs = {"kind": "blobs", "shape": (16, 24), "noise": 0.5, "labelled": 8, "test": 7, "test_seed": 9}
    walks = {**CRITERION, "domains": ("blobs",)}
    content = DECLARATION.model_dump() | {"cohort": blobs, "objective": None, "pretraining": None}
    content["experiments"][0]["criterion"] = walks
    result = reproduction(finding(cells=tuple(rows), decimals=2)).model_copy(
        update={"declaration": Declaration.model_validate(content)}
    )
    lines = reproduction_markdown(result).splitlines()
    assert "| images | n | of | first | last | difference |" in lines
    assert "| blobs | 8 | new | 80.00 | 80.12 | +0.12 (-1.00 to +1.00) |" in lines
    assert (
        "- blob phantoms of 16 x 24 pixels, noise 0.5: labelled 8 a seed, test 7 for all seeds (phantom seed 9)"
        in lines
    )
    assert "- training of every method: preset `recommended`, " in lines
    assert "dice, new - old: -1.25 (-2.00 to +0.50); by seed -2.50, +0.00" in shown(result)
    assert "7 test images, the same for every seed" in shown(result)
