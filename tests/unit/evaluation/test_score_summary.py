import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medsegdiff_cli.artifacts.scores import METRICS, CaseScore, Scores, read_scores, to_json, write_scores
from medsegdiff_cli.errors import BelowDemandedScore, InputDataError, UsageError
from medsegdiff_cli.evaluation.case_scores import score_case
from medsegdiff_cli.evaluation.demand import demand
from medsegdiff_cli.evaluation.summary import collect_scores, merge_scores

CLASSES = {"a": (1,), "b": (2,), "any": (1, 2)}


def scored(
    name: str,
    prediction: Sequence[int],
    reference: Sequence[int],
    group: str | None = None,
    classes: dict[str, tuple[int, ...]] | None = None,
    ignore: int | None = None,
) -> CaseScore:
    """Score one row of pixels, 1 px each."""
    arrays = (np.array([row]) for row in (prediction, reference))
    scores, background = score_case(
        *arrays, classes or CLASSES, (1.0, 1.0), ignore_value=ignore, nsd_tolerance_mm=1, has_physical_spacing=False
    )
    return CaseScore(
        case=name,
        group=group,
        domain=f"site {name[0]}",
        reference_file=f"labels/{name}.png",
        prediction_file=f"predictions/{name}.png",
        distance_unit="px",
        volume_unit="px",
        image_diagonal=float(np.hypot(1, len(reference))),
        classes=tuple(scores),
        background=background,
    )


def two_cases() -> list[CaseScore]:
    """Return a case with a Dice of 1 (a) and 2/3 (b), and one with 1/2 (a) in which b is nowhere."""
    return [
        scored("x1", [1, 1, 0, 2, 2, 0], [1, 1, 0, 2, 0, 0], "p1"),
        scored("y1", [1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], "p2"),
    ]


def summary_of_two() -> Scores:
    return collect_scores(two_cases(), CLASSES, nsd_tolerance=1, provenance={"command": "msd evaluate"}, notes=("n",))


def test_the_three_aggregations_are_what_they_are_called() -> None:
    overall = summary_of_two().overall
    a, b, both = (1, 1 / 2), (2 / 3, None), (2 * 3 / (4 + 3), 1 / 2)
    assert overall.per_class["a"]["dice"].mean == sum(a) / 2
    assert overall.per_class["b"]["dice"].mean == pytest.approx(b[0])
    assert (overall.per_class["b"]["dice"].n, overall.per_class["b"]["dice"].undefined) == (1, 1)
    case_means = [(a[0] + b[0] + both[0]) / 3, (a[1] + both[1]) / 2]
    assert overall.per_case_then_class["dice"].mean == pytest.approx(sum(case_means) / 2)
    assert overall.per_case_then_class["dice"].std == pytest.approx(np.std(case_means, ddof=1))
    class_means = [sum(a) / 2, b[0], sum(both) / 2]
    assert overall.case_by_class["dice"].mean == pytest.approx(sum(class_means) / 3)
    assert overall.case_by_class["dice"].median == pytest.approx(np.median(class_means))
    # Pooled: class a has 2 + 1 common pixels of 2 + 3 predicted and 2 + 1 in the reference.
    assert overall.dataset_level["a"]["dice"] == 2 * 3 / (5 + 3)
    assert overall.undefined == {"a": 0, "b": 1, "any": 0}


def test_the_named_aggregations_by_hand() -> None:
    """Case 1: a 2 of 2, b 1 of 2 pixels shared, background 2 of 3; case 2: a 1 of 3, background 3 of 5; no b, no c."""
    classes = {"a": (1,), "b": (2,), "c": (3,)}
    cases = [
        scored("x", [1, 1, 0, 2, 2, 0], [1, 1, 0, 2, 0, 0], classes=classes),
        scored("y", [1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], classes=classes),
    ]
    named = collect_scores(cases, classes, nsd_tolerance=1).overall.named
    assert named["jaccard_per_image"] == pytest.approx(((2 / 2 + 1 / 2) / 2 + 1 / 3) / 2)
    iou_of_a, iou_of_b, iou_of_background = (2 + 1) / (2 + 3), 1 / 2, (2 + 3) / (3 + 5)
    assert named["miou"] == pytest.approx((iou_of_a + iou_of_b + iou_of_background) / 3)


def test_the_iou_of_a_dataset_equals_a_count_pixel_by_pixel() -> None:
    """Classes 1 to 3, of which 3 is nowhere, 9 ignored and 7 of no class: it is background."""
    rng, classes = np.random.default_rng(0), {"a": (1,), "b": (2,), "c": (3,)}
    rows = [(rng.choice([0, 1, 2, 7], 50).tolist(), rng.choice([0, 1, 2, 9], 50).tolist()) for _ in range(3)]
    cases = [scored(str(n), *row, classes=classes, ignore=9) for n, row in enumerate(rows)]
    ious = []
    for value in (0, 1, 2, 3):
        pixels = [(p, r) for row in rows for p, r in zip(*row, strict=True) if r != 9]
        pairs = [((p if p in (1, 2, 3) else 0) == value, r == value) for p, r in pixels]
        either = sum(p or r for p, r in pairs)
        ious += [sum(p and r for p, r in pairs) / either] if either else []
    assert len(ious) == 3
    assert collect_scores(cases, classes, nsd_tolerance=1).overall.named["miou"] == pytest.approx(sum(ious) / 3)


def test_scores_of_an_earlier_version_have_no_counts_of_the_background_and_no_miou() -> None:
    cases = [case.model_copy(update={"background": None}) for case in two_cases()]
    named = collect_scores(cases, CLASSES, nsd_tolerance=1).overall.named
    assert named["miou"] is None
    assert named["jaccard_per_image"] is not None


def test_named_aggregations_can_be_demanded() -> None:
    scores = summary_of_two()
    demand(scores, ["miou=0.1", "jaccard_per_image=0.1"])
    with pytest.raises(BelowDemandedScore, match=r"miou is 0\.\d+, demanded is at least 0\.99"):
        demand(scores, ["miou=0.99"])


def test_groups_and_domains_have_summaries_of_their_own() -> None:
    cases = [*two_cases(), scored("y2", [1, 0], [1, 0], "p2")]
    scores = collect_scores(cases, CLASSES, nsd_tolerance=1)
    assert {name: part.n_cases for name, part in scores.groups.items()} == {"p1": 1, "p2": 2}
    assert {name: part.n_cases for name, part in scores.domains.items()} == {"site x": 1, "site y": 2}
    assert scores.domains["site y"].per_class["a"]["dice"].mean == (1 / 2 + 1) / 2


def test_groups_of_one_case_each_are_not_summarised() -> None:
    assert summary_of_two().groups == {}


def test_a_missed_structure_counts_and_lowers_the_mean() -> None:
    cases = [scored("x1", [1, 2], [1, 2]), scored("x2", [1, 0], [1, 2])]
    overall = collect_scores(cases, CLASSES, nsd_tolerance=1).overall
    assert overall.missed == {"a": 0, "b": 1, "any": 0}
    assert overall.per_class["b"]["dice"].mean == (1 + 0) / 2
    assert overall.per_class["b"]["hd95_max"].mean == (0 + np.hypot(1, 2)) / 2


def test_summary_json_keeps_the_keys_of_nnunet(tmp_path: Path) -> None:
    write_scores(tmp_path, summary_of_two())
    content = json.loads((tmp_path / "summary.json").read_text())
    eight = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
    assert set(content["foreground_mean"]) == eight
    assert list(content["mean"]) == ["1", "2", "(1, 2)"]
    case = content["metric_per_case"][0]
    assert (case["reference_file"], case["prediction_file"]) == ("labels/x1.png", "predictions/x1.png")
    assert eight < set(case["metrics"]["(1, 2)"])
    assert case["metrics"]["1"] | {"Dice": 1.0, "TP": 2, "FP": 0, "FN": 0, "TN": 4} == case["metrics"]["1"]
    assert content["mean"]["1"]["Dice"] == (1 + 1 / 2) / 2
    assert content["mean"]["1"]["TP"] == (2 + 1) / 2
    assert content["foreground_mean"]["Dice"] == content["aggregations"]["overall"]["case_by_class"]["dice"]["mean"]
    assert content["names"] == {"1": "a", "2": "b", "(1, 2)": "any"}


def test_undefined_is_null_and_never_nan(tmp_path: Path) -> None:
    scores = collect_scores([scored("x1", [1], [1])], {"a": (1,), "b": (2,), "any": (1, 2)}, nsd_tolerance=1)
    write_scores(tmp_path, scores)
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["mean"]["2"]["Dice"] is None
    assert content["metric_per_case"][0]["metrics"]["2"]["hd95_max"] is None


def test_scores_are_read_back_as_written(tmp_path: Path) -> None:
    scores = summary_of_two()
    write_scores(tmp_path, scores)
    assert read_scores(tmp_path) == scores == read_scores(tmp_path / "summary.json")


def test_scores_csv_has_a_row_per_case_and_class(tmp_path: Path) -> None:
    write_scores(tmp_path, summary_of_two())
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [(row["case"], row["class"], row["label"]) for row in rows[:3]] == [
        ("x1", "a", "1"),
        ("x1", "b", "2"),
        ("x1", "any", "(1, 2)"),
    ]
    assert set(METRICS) < set(rows[0])
    assert float(rows[1]["dice"]) == 2 / 3
    undefined = next(row for row in rows if row["case"] == "y1" and row["class"] == "b")
    assert (undefined["dice"], undefined["undefined"], undefined["group"]) == ("", "1", "p2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema_version 9"),
        ({"names": {}}, "incomplete"),
        ({"nsd_tolerance": "wide"}, "nsd_tolerance"),
        ({"aggregations": []}, "incomplete"),
    ],
)
def test_a_damaged_summary_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(to_json(summary_of_two()) | change))
    with pytest.raises(InputDataError, match=message):
        read_scores(tmp_path)


def test_the_summary_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"foreground_mean": {}, "mean": {}, "metric_per_case": []}')
    with pytest.raises(InputDataError, match="no summary written by msd"):
        read_scores(tmp_path)


def test_merged_folds_equal_one_evaluation_of_all_cases() -> None:
    first, second = two_cases()
    parts = [collect_scores([case], CLASSES, nsd_tolerance=1) for case in (second, first)]
    assert merge_scores(parts) == collect_scores([first, second], CLASSES, nsd_tolerance=1)


def test_folds_that_do_not_fit_are_not_merged() -> None:
    one = summary_of_two()
    with pytest.raises(UsageError, match="more than one set"):
        merge_scores([one, one])
    with pytest.raises(UsageError, match="tolerances"):
        merge_scores([one, one.model_copy(update={"nsd_tolerance": 2.0})])
    with pytest.raises(UsageError, match="different classes"):
        merge_scores([one, one.model_copy(update={"classes": {"z": (1,)}})])


def test_mixed_units_are_said() -> None:
    first, second = two_cases()
    mixed = [first, second.model_copy(update={"distance_unit": "mm"})]
    assert "mix px and mm" in collect_scores(mixed, CLASSES, nsd_tolerance=1).notes[0]


def test_a_reached_demand_is_silent_and_a_missed_one_names_both_numbers() -> None:
    scores = summary_of_two()
    value = scores.overall.case_by_class["dice"].mean
    demand(scores, [f"dice={value}", "hd95_max=1000"])
    with pytest.raises(BelowDemandedScore, match=rf"dice is {value:.4f}, demanded is at least 0\.99") as caught:
        demand(scores, ["dice=0.99", "hd95_max=0.01"])
    assert caught.value.exit_code == 8
    assert "hd95_max is" in str(caught.value)


def test_an_undefined_score_reaches_no_demand() -> None:
    scores = collect_scores([scored("x1", [0], [0])], CLASSES, nsd_tolerance=1)
    with pytest.raises(BelowDemandedScore, match="dice is undefined"):
        demand(scores, ["dice=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("dise=0.8", "did you mean 'dice'"), ("dice", "not METRIC=NUMBER"), ("dice=x", "METRIC"), ("dice=nan", "METRIC")],
)
def test_a_wrong_demand_is_a_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        demand(summary_of_two(), [text])
