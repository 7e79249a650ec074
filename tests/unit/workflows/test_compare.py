"""Comparing sets of scores: finding them, pairing cases, rows by class and domain, what is said and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medsegdiff_cli.artifacts.comparison import Comparison
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.evaluation.compare import ComparisonSettings
from medsegdiff_cli.paths import open_workspace
from medsegdiff_cli.workflows.compare import CompareRequest, compare

CASES = [f"case_{i:02}" for i in range(16)]
QUICK = {"resamples": 500}


def write_scores(path: Path, dice: dict, **columns: dict) -> Path:
    """Write a scores.csv: `dice` is case -> class -> value or None; `columns` are name -> case -> text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "class", "dice", *columns])
        for case, classes in dice.items():
            for name, value in classes.items():
                words = [column.get(case, "") for column in columns.values()]
                table.writerow([case, name, "" if value is None else value, *words])
    return path


def seeded(seed: int, shift: float = 0.0, cases=CASES, classes=("organ", "nodule")) -> dict:
    generator = np.random.default_rng(seed)
    return {case: {name: 0.7 + shift + 0.1 * generator.random() for name in classes} for case in cases}


def run(folder: Path, *scores: object, baseline=None, domains=None, **settings) -> Comparison:
    request = CompareRequest(
        scores=[str(text) for text in scores],
        workspace=open_workspace(folder / "workspace"),
        settings=ComparisonSettings(**{**QUICK, **settings}),
        baseline=baseline,
        domains=domains,
    )
    return compare(request)


def test_a_row_holds_what_scipy_and_plain_means_say(tmp_path) -> None:
    first, second = seeded(0), seeded(1, 0.03)
    a, b = write_scores(tmp_path / "a/scores.csv", first), write_scores(tmp_path / "b/scores.csv", second)
    comparison = run(tmp_path, a.parent, b)
    assert comparison.baseline == "a"
    assert [(row.scores, row.class_name, row.domain) for row in comparison.rows] == [
        ("b", "organ", None),
        ("b", "nodule", None),
    ]
    row = comparison.rows[0]
    x, y = ([table[case]["organ"] for case in CASES] for table in (first, second))
    assert (row.n, row.wins + row.ties + row.losses) == (16, 16)
    assert row.wins == sum(j > i for i, j in zip(x, y, strict=True))
    assert (row.mean_baseline, row.mean) == pytest.approx((np.mean(x), np.mean(y)))
    assert row.difference == pytest.approx(np.mean(y) - np.mean(x))
    assert row.low < row.difference < row.high
    assert row.p == pytest.approx(stats.wilcoxon(y, x).pvalue)
    t_test = run(tmp_path, a, b, test="ttest", correction="none").rows[0]
    assert t_test.p == t_test.p_corrected == pytest.approx(stats.ttest_rel(y, x).pvalue)


def test_swapping_the_sets_turns_every_sign(tmp_path) -> None:
    a = write_scores(tmp_path / "a/scores.csv", seeded(0))
    b = write_scores(tmp_path / "b/scores.csv", seeded(1, 0.03))
    there, back = run(tmp_path, a, b), run(tmp_path, a, b, baseline="b")
    for row, turned in zip(there.rows, back.rows, strict=True):
        assert turned.scores == "a"
        assert (turned.difference, turned.low, turned.high) == (-row.difference, -row.high, -row.low)
        assert (turned.mean, turned.p, turned.p_corrected) == (row.mean_baseline, row.p, row.p_corrected)
        assert (turned.wins, turned.ties, turned.losses) == (row.losses, row.ties, row.wins)


def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path) -> None:
    dice = seeded(1)
    a = write_scores(tmp_path / "a/scores.csv", seeded(0))
    b = write_scores(tmp_path / "b/scores.csv", dice)
    c = write_scores(tmp_path / "c/scores.csv", dict(reversed(dice.items())))
    rows = run(tmp_path, a, b, c, correction="none").rows
    assert [row.model_copy(update={"scores": ""}) for row in rows[:2]] == [
        row.model_copy(update={"scores": ""}) for row in rows[2:]
    ]


def test_p_is_corrected_over_all_rows_that_are_shown(tmp_path) -> None:
    sets = [write_scores(tmp_path / f"{i}/scores.csv", seeded(i, 0.02 * i)) for i in range(3)]
    rows = run(tmp_path, *sets, correction="bonferroni")
    assert rows.family_size == len(rows.rows) == 4
    assert [row.p_corrected for row in rows.rows] == pytest.approx([min(1, 4 * row.p) for row in rows.rows])
    assert [row.is_significant for row in rows.rows] == [row.p_corrected < 0.05 for row in rows.rows]


@pytest.mark.parametrize(
    ("settings", "ending"),
    [
        ({"correction": "bonferroni"}, "alpha 0.05; Bonferroni correction over 2 tested rows (TEDM rule)"),
        ({}, "Holm correction over 2 tested rows (test and alpha of the TEDM rule, which has Bonferroni over classes)"),
        ({"test": "ttest", "correction": "none"}, "paired t-test, two-sided, alpha 0.01; no correction (ImgX rule)"),
        ({"alpha": 0.2, "correction": "none"}, "two-sided, alpha 0.2; no correction"),
    ],
)
def test_the_rule_is_named(tmp_path, settings, ending) -> None:
    a, b = (write_scores(tmp_path / f"{i}/scores.csv", seeded(i)) for i in range(2))
    assert run(tmp_path, a, b, **settings).rule.endswith(ending)


def test_a_correction_over_more_than_classes_is_not_called_the_papers_rule(tmp_path) -> None:
    sets = [write_scores(tmp_path / f"{i}/scores.csv", seeded(i)) for i in range(3)]
    rule = run(tmp_path, *sets, correction="bonferroni").rule
    assert "(TEDM rule)" not in rule
    assert rule.endswith("over 4 tested rows (test and alpha of the TEDM rule, which has Bonferroni over classes)")


def test_each_domain_has_rows_of_its_own(tmp_path) -> None:
    domain = {case: "near" if i < 9 else "far" for i, case in enumerate(CASES)}
    first, second = seeded(0, classes=("organ",)), seeded(1, classes=("organ",))
    a = write_scores(tmp_path / "a/scores.csv", first, domain=domain)
    b = write_scores(tmp_path / "b/scores.csv", second)
    rows = run(tmp_path, a, b).rows
    assert [(row.domain, row.n) for row in rows] == [(None, 16), ("far", 7), ("near", 9)]
    far = [second[case]["organ"] - first[case]["organ"] for case in CASES[9:]]
    assert rows[1].difference == pytest.approx(np.mean(far))
    assert rows[1].p == pytest.approx(stats.wilcoxon(far).pvalue)
    # A file with other domains replaces those of the scores; a case without one is told.
    table = tmp_path / "domains.csv"
    table.write_text("case,domain\n" + "".join(f"{case},{'ABC'[i % 3]}\n" for i, case in enumerate(CASES[:-1])))
    comparison = run(tmp_path, a, b, domains=table)
    assert [(row.domain, row.n) for row in comparison.rows] == [(None, 16), ("A", 5), ("B", 5), ("C", 5)]
    assert "Cases of no domain, in the rows of all cases only: 1 (case_15)." in comparison.warnings


def test_cases_without_a_partner_are_named_and_in_no_row(tmp_path) -> None:
    a = write_scores(tmp_path / "a/scores.csv", seeded(0))
    b = write_scores(tmp_path / "b/scores.csv", seeded(1, cases=[*CASES[2:], "new"]))
    comparison = run(tmp_path, a, b)
    assert {row.n for row in comparison.rows} == {14}
    assert comparison.unpaired["b"].only_in_baseline == ("case_00", "case_01")
    assert comparison.unpaired["b"].only_in_scores == ("new",)
    assert "'b' against 'a': cases only in 'a', in no row: 2 (case_00, case_01)." in comparison.warnings
    assert "'b' against 'a': cases only in 'b', in no row: 1 (new)." in comparison.warnings
    c = write_scores(tmp_path / "c/scores.csv", seeded(1, cases=["other"]))
    with pytest.raises(UsageError, match="share no case"):
        run(tmp_path, a, b, c)
    d = write_scores(tmp_path / "d/scores.csv", seeded(1, classes=("vessel",)))
    with pytest.raises(UsageError, match="share no class"):
        run(tmp_path, a, d)


def test_undefined_values_are_counted_and_in_no_mean(tmp_path) -> None:
    first, second = seeded(0, classes=("organ",)), seeded(1, classes=("organ",))
    first["case_00"]["organ"] = second["case_00"]["organ"] = None
    first["case_01"]["organ"] = None
    second["case_01"]["organ"] = 0.0
    comparison = run(
        tmp_path, write_scores(tmp_path / "a/scores.csv", first), write_scores(tmp_path / "b/scores.csv", second)
    )
    (row,) = comparison.rows
    assert (row.n, row.undefined, row.undefined_in_one) == (14, 1, 1)
    assert row.mean == pytest.approx(np.mean([second[case]["organ"] for case in CASES[2:]]))
    assert "1 of 'b', 0 of the baseline" in row.note


def test_a_row_without_a_test_has_a_note_and_is_not_in_the_family(tmp_path) -> None:
    a, b = (write_scores(tmp_path / f"{i}/scores.csv", seeded(i, cases=CASES[:5])) for i in range(2))
    comparison = run(tmp_path, a, b)
    assert comparison.family_size == 0
    for row in comparison.rows:
        assert (row.n, row.p, row.p_corrected, row.is_significant) == (5, None, None, None)
        assert "too few for Wilcoxon" in row.note
        assert "fewer than 6 cases" in row.note
    one, other = (write_scores(tmp_path / f"one{i}/scores.csv", seeded(i, cases=CASES[:1])) for i in range(2))
    single = run(tmp_path, one, other).rows[0]
    assert (single.n, single.low, single.high) == (1, None, None)
    assert "no interval" in single.note


def test_equal_sets_have_ties_only(tmp_path) -> None:
    a, b = (write_scores(tmp_path / f"{i}/scores.csv", seeded(0)) for i in range(2))
    row = run(tmp_path, a, b).rows[0]
    assert (row.wins, row.ties, row.losses) == (0, 16, 0)
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, None)
    assert "0 non-zero differences" in row.note


def test_patients_with_several_cases_are_resampled_and_tested_as_wholes(tmp_path) -> None:
    patient = {case: f"p{i // 2}" for i, case in enumerate(CASES)}
    first, second = seeded(0, classes=("organ",)), seeded(1, classes=("organ",))
    a = write_scores(tmp_path / "a/scores.csv", first, group=patient)
    b = write_scores(tmp_path / "b/scores.csv", second, group=patient)
    comparison = run(tmp_path, a, b)
    (row,) = comparison.rows
    assert (comparison.resampled, row.n, row.groups) == ("groups", 16, 8)
    differences = np.array([second[case]["organ"] - first[case]["organ"] for case in CASES])
    assert row.p == pytest.approx(stats.wilcoxon(differences.reshape(8, 2).mean(axis=1)).pvalue)
    by_case = run(tmp_path, a, b, use_groups=False)
    assert (by_case.resampled, by_case.rows[0].groups) == ("cases", None)
    plain = [write_scores(tmp_path / f"plain{i}/scores.csv", seeded(i)) for i in range(2)]
    assert run(tmp_path, *plain).resampled == "cases"
    with pytest.raises(UsageError, match="no patients"):
        run(tmp_path, *plain, use_groups=True)


def test_lower_distances_win(tmp_path) -> None:
    units = {"distance_unit": dict.fromkeys(CASES, "mm")}
    a = write_scores(tmp_path / "a/scores.csv", seeded(0), hd95_max=dict.fromkeys(CASES, "9"), **units)
    b = write_scores(tmp_path / "b/scores.csv", seeded(1), hd95_max=dict.fromkeys(CASES, "4"), **units)
    row = run(tmp_path, a, b, metric="hd95_max").rows[0]
    assert (row.difference, row.wins, row.losses) == (-5, 16, 0)
    pixels = {"distance_unit": dict.fromkeys(CASES, "px")}
    c = write_scores(tmp_path / "c/scores.csv", seeded(1), hd95_max=dict.fromkeys(CASES, "4"), **pixels)
    with pytest.raises(UsageError, match="is in mm and in px"):
        run(tmp_path, a, c, metric="hd95_max")


def test_other_references_and_missing_predictions_are_told(tmp_path) -> None:
    sizes = dict.fromkeys(CASES, "100")
    a = write_scores(tmp_path / "a/scores.csv", seeded(0), n_ref=sizes)
    b = write_scores(
        tmp_path / "b/scores.csv", seeded(1), n_ref={**sizes, "case_03": "99"}, missing_prediction={"case_04": "1"}
    )
    warnings = " ".join(run(tmp_path, a, b).warnings)
    assert "references of different size" in warnings
    assert "in 1 of 16 cases: case_03" in warnings
    assert "Cases without a prediction in 'b', which have the worst scores: 1 (case_04)." in warnings


def test_runs_folds_and_labels_are_understood(tmp_path) -> None:
    results = tmp_path / "workspace/results/Dataset001_X"
    for name, seed in (("base__2d", 0), ("ours__2d", 1)):
        for fold in range(2):
            dice = seeded(seed, cases=CASES[fold::2])
            write_scores(results / name / f"fold_{fold}/validation/scores.csv", dice)
    whole = run(tmp_path, "base__2d", results / "ours__2d")
    assert list(whole.sources) == ["base__2d", "ours__2d"]
    assert [row.n for row in whole.rows] == [16, 16]
    folds = run(tmp_path, results / "base__2d/fold_0", f"new={results}/ours__2d/fold_0")
    assert list(folds.sources) == ["base__2d/fold_0", "new"]
    assert [row.n for row in folds.rows] == [8, 8]
    told_apart = run(tmp_path, results / "base__2d/fold_0", results / "ours__2d/fold_0/validation/scores.csv")
    assert list(told_apart.sources) == ["base__2d/fold_0", "ours__2d/fold_0"]
    chosen = run(tmp_path, "base__2d", results / "ours__2d", baseline=str(results / "ours__2d"))
    assert chosen.baseline == "ours__2d"


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    a = write_scores(tmp_path / "a/scores.csv", seeded(0))
    b = write_scores(tmp_path / "b/scores.csv", seeded(1))
    with pytest.raises(UsageError, match="1 set of scores"):
        run(tmp_path, a)
    with pytest.raises(UsageError, match="given twice"):
        run(tmp_path, a, a)
    with pytest.raises(UsageError, match="one label"):
        run(tmp_path, f"x={a}", f"x={b}")
    with pytest.raises(UsageError, match="does not exist"):
        run(tmp_path, a, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no path with scores"):
        run(tmp_path, a, "nowhere")
    with pytest.raises(UsageError, match="baseline 'c' is none"):
        run(tmp_path, a, b, baseline="c")
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        run(tmp_path, a, b, metric="dicee")


def test_a_damaged_table_is_refused_with_its_place(tmp_path) -> None:
    good = write_scores(tmp_path / "a/scores.csv", seeded(0))
    bad = tmp_path / "bad.csv"
    for text, message in (
        ("case,class,dice\nx,organ,0.5\nx,organ,0.5\n", "two rows for case 'x'"),
        ("case,class,dice\nx,organ\n", "line 2"),
        ("case,dice\nx,0.5\n", "no table of scores"),
        ("case,class,dice\n", "without rows"),
    ):
        bad.write_text(text)
        with pytest.raises(InputDataError, match=message):
            run(tmp_path, good, bad)
    bad.write_text("case,class,dice\ncase_00,organ,high\n")
    with pytest.raises(InputDataError, match="'high' is no score"):
        run(tmp_path, good, bad)
