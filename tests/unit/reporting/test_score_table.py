import io

import pytest
from rich.console import Console, RenderableType

from medsegdiff_cli.artifacts.scores import METRICS, Scores, ScoreSummary, Statistic
from medsegdiff_cli.reporting.score_table import domain_table, score_report, score_table


def summary(mean: float | None, n_cases: int = 4) -> ScoreSummary:
    statistic = Statistic(mean=mean, std=0.125, median=mean, n=n_cases - 1, undefined=1)
    alone = Statistic(mean=12.345, std=None, median=12.345, n=1, undefined=0)
    return ScoreSummary(
        n_cases=n_cases,
        missing_predictions=1,
        missed={"[lobe] left": 2, "vein": 0},
        spurious={"[lobe] left": 0, "vein": 1},
        undefined={"[lobe] left": 0, "vein": 5},
        per_class={"[lobe] left": dict.fromkeys(METRICS, statistic), "vein": dict.fromkeys(METRICS, alone)},
        per_case_then_class=dict.fromkeys(METRICS, Statistic(mean=0.25, std=0.1, median=0.2, n=4, undefined=0)),
        case_by_class=dict.fromkeys(METRICS, Statistic(mean=0.375, std=0.1, median=0.2, n=2, undefined=0)),
        dataset_level={},
        dataset_level_mean={"dice": 0.625},
        named={"jaccard_per_image": 0.4375, "miou": None},
    )


@pytest.fixture
def scores() -> Scores:
    return Scores(
        classes={"[lobe] left": (1,), "vein": (2,)},
        cases=(),
        nsd_tolerance=1.5,
        overall=summary(0.5),
        domains={"site A": summary(0.75, 3), "site B": summary(None, 1)},
        failures={"case_9": "truncated"},
        notes=("seen in pretraining",),
    )


def text_of(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if name in line)
    return [cell.strip() for cell in line.split("│")]


def test_a_row_holds_mean_and_deviation_with_n_missed_and_spurious(scores: Scores) -> None:
    text = text_of(score_table(scores))
    assert row_of(text, "lobe") == ["[lobe] left", *["0.500 ± 0.125"] * 4, "3", "2", "0"]
    assert row_of(text, "vein") == ["vein", *["12.3"] * 4, "1", "0", "1"]


def test_what_papers_quote_stands_below_where_it_is_known(scores: Scores) -> None:
    text = text_of(score_report(scores))
    assert "Jaccard index per image: 0.438." in text
    assert "mIoU" not in text


def test_every_aggregation_has_its_name(scores: Scores) -> None:
    text = text_of(score_table(scores, metrics=("dice", "assd")))
    assert row_of(text, "Case by class")[1:3] == ["0.375", "0.375"]
    assert row_of(text, "Case then class")[1:3] == ["0.250", "0.250"]
    assert row_of(text, "Dataset level")[1:3] == ["0.625", "–"]


def test_the_table_fits_a_terminal_of_100_columns(scores: Scores) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(score_table(scores))
    assert row_of(console.file.getvalue(), "lobe")[:2] == ["[lobe] left", "0.500 ± 0.125"]  # type: ignore[attr-defined]


def test_domains_stand_side_by_side(scores: Scores) -> None:
    text = text_of(domain_table(scores))
    assert "site A (n=3)" in text
    assert row_of(text, "lobe") == ["[lobe] left", "0.750 ± 0.125", "–"]


def test_what_must_be_known_beside_the_table_is_said(scores: Scores) -> None:
    text = text_of(score_report(scores))
    for sentence in (
        "without a prediction, counted with the worst scores: 1.",
        "image diagonal: 3.",
        "in no mean: 5.",
        "could not be scored, in no mean: 1 (case_9).",
        "seen in pretraining",
        "per domain",
    ):
        assert sentence in text
