"""Reports of cases whose names attack the program that shows them: spreadsheets, browsers, terminals."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medsegdiff_cli.artifacts.comparison import write_comparison_csv
from medsegdiff_cli.artifacts.prediction_folder import Sidecar, write_sidecar
from medsegdiff_cli.artifacts.score_rows import read_score_rows
from medsegdiff_cli.artifacts.scores import write_scores
from medsegdiff_cli.artifacts.spreadsheet import cell, text_of
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.evaluation.compare import ComparisonSettings
from medsegdiff_cli.evaluation.evaluate import evaluate_folder
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.writing import write_label
from medsegdiff_cli.paths import VOLUMES_CSV, open_workspace
from medsegdiff_cli.prediction.volumes import write_volumes
from medsegdiff_cli.reporting.page import Page, Section, Table, render
from medsegdiff_cli.workflows.compare import CompareRequest, compare

PACKAGE = Path(__file__).resolve().parents[2] / "medsegdiff_cli"
CASES = ("=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd", "@SUM(1,2)", "\t=1+1", "'=quoted", "'", "plain", "a=b")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def cells_of(text: str) -> list[str]:
    return [written for row in csv.reader(io.StringIO(text, newline="")) for written in row]


def formulas(text: str) -> list[str]:
    """Return the cells that a spreadsheet program would run."""
    return [word for word in cells_of(text) if re.match(r"[=+\-@\t\r\n]", word) and not NUMBER.fullmatch(word)]


@pytest.fixture
def scored(tmp_path: Path) -> list[Path]:
    """Two folders of scores whose cases, classes, groups and domains begin like formulas."""
    grid = Geometry.plain((3, 6, 6))
    label = np.zeros((1, *grid.shape), np.uint8)
    label[0, 1, 1:4, 1:4] = 1
    reference = tmp_path / "reference.nii.gz"
    write_label(reference, label, grid)
    folders = []
    for number, shift in enumerate((1, 2)):
        prediction = tmp_path / f"prediction_{number}.nii.gz"
        write_label(prediction, np.roll(label, shift, axis=-1), grid)
        pairs = [
            ScorePair(case=case, prediction=prediction, reference=reference, group=f"={case}", domain="@site")
            for case in CASES
        ]
        scores = evaluate_folder(pairs, ScoreSettings(classes={"=organ": (1,)}))
        folders.append(tmp_path / f"scores_{number}")
        write_scores(folders[-1], scores)
    return folders


@pytest.mark.fault("F92")
def test_scores_carry_no_formula_and_names_and_numbers_come_back(scored: list[Path]) -> None:
    text = (scored[0] / "scores.csv").read_text(encoding="utf-8")
    assert formulas(text) == []
    rows = read_score_rows("a", [scored[0]])
    assert rows.cases == tuple(sorted(CASES))
    assert rows.class_names == ("=organ",)
    assert rows.words("group") == {case: f"={case}" for case in CASES}
    # 9 voxels, moved by one: 6 are shared.
    assert set(rows.numbers("dice").values()) == {2 * 6 / 18}


@pytest.mark.fault("F92")
def test_comparisons_carry_no_formula_but_negative_numbers(scored: list[Path], tmp_path: Path) -> None:
    request = CompareRequest(
        scores=[f"-base={scored[0]}", f"@ours={scored[1]}"],
        workspace=open_workspace(tmp_path / "workspace"),
        settings=ComparisonSettings(resamples=20),
    )
    comparison = compare(request)
    write_comparison_csv(tmp_path / "rows.csv", comparison)
    text = (tmp_path / "rows.csv").read_text(encoding="utf-8")
    assert formulas(text) == []
    table = list(csv.DictReader(io.StringIO(text)))
    assert float(table[0]["difference"]) == pytest.approx((3 - 6) / 9)


@pytest.mark.fault("F92")
def test_volumes_carry_no_formula(tmp_path: Path) -> None:
    facts = {
        "key": "k",
        "input_digests": {},
        "outputs": {},
        "model_digests": (),
        "plan_digest": "p",
        "msd_version": "0",
    }
    for case in CASES:
        counts = {"voxels": {"-organ": 12}, "volumes_ml": {"-organ": 0.5}, "flags": ("=1+1",)}
        write_sidecar(tmp_path, Sidecar(case=case.replace("/", "|"), command="", seed=0, **facts, **counts))
    write_volumes(tmp_path)
    text = (tmp_path / VOLUMES_CSV).read_text(encoding="utf-8")
    assert formulas(text) == []
    assert {row["voxels"] for row in csv.DictReader(io.StringIO(text))} == {"12"}


@pytest.mark.fault("F92")
def test_every_text_comes_back_from_its_cell() -> None:
    for case in (*CASES, "", "''", "''=", "'a", "ä", "\r\n"):
        assert text_of(cell(case)) == case
    assert [cell(value) for value in (None, True, -1, -0.5, "x")] == ["", 1, -1, -0.5, "x"]
    # What a person typed with an apostrophe in front stays as it is.
    assert text_of("'t Hooft") == "'t Hooft"


@pytest.mark.fault("F93")
def test_a_page_shows_a_script_instead_of_running_it() -> None:
    nasty = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)"
    table = Table(caption=nasty, headers=(nasty, nasty), rows=((nasty, nasty),))
    section = Section(heading=nasty, paragraphs=(nasty,), tables=(table,))
    page = Page(title=nasty, notice=nasty, paragraphs=(nasty,), sections=(section,), provenance=((nasty, nasty),))
    html = render(page)
    assert "<script" not in html
    assert "<img" not in html
    assert "onload='" not in html
    assert html.count("&lt;script&gt;") >= 12


@pytest.mark.fault("F93")
def test_no_template_turns_the_escaping_off() -> None:
    sources = [path for ending in ("*.py", "*.jinja") for path in PACKAGE.rglob(ending)]
    found = [
        path.name
        for path in sources
        if re.search(r"\|\s*safe\b|\bMarkup\(|autoescape=False|{%\s*autoescape", path.read_text())
    ]
    assert len(sources) > 100
    assert found == []


@pytest.mark.fault("F93")
def test_a_table_on_the_terminal_shows_names_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / "workspace" / "results" / "Dataset001_[red]A" / "supervised__3d__[bold]x" / "fold_0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{")
    shown = CliRunner().invoke(app, ["runs", "--workspace", str(tmp_path / "workspace")])
    assert shown.exit_code == 0
    assert "[red]A" in shown.stdout
    assert "[bold]x" in shown.stdout
