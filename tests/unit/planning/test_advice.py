"""Which method a plan favours; the numbers expected here are read from the paper's tables, not from the code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.planning.advice import OWN_TRIAL, DataCounts, advise
from medsegdiff_cli.workflows import plan

TEDM, SUPERVISED = "`msd train tedm 11`", "`msd train supervised 11`"


def _advice(groups: int, unlabelled: int, n_dims: int = 2, **domains: frozenset[str]) -> str:
    counts = DataCounts(labelled_groups=groups, unlabelled=unlabelled, n_dims=n_dims, **domains)
    return " ".join(advise(counts, "11"))


@pytest.mark.parametrize(
    ("groups", "unlabelled", "n_dims", "first"),
    [
        (6, 1000, 2, TEDM),
        (12, 100_000, 2, TEDM),
        (13, 100_000, 2, SUPERVISED),
        (6, 999, 2, SUPERVISED),
        (6, 100, 2, SUPERVISED),
        (1, 99, 2, SUPERVISED),
        (3, 250, 3, TEDM),
        (4, 250, 3, SUPERVISED),
        (1, 249, 3, SUPERVISED),
        (40, 34_000, 3, SUPERVISED),
    ],
)
def test_the_method_that_the_evidence_favours_comes_first_and_the_other_is_named_too(
    groups: int, unlabelled: int, n_dims: int, first: str
) -> None:
    said = _advice(groups, unlabelled, n_dims)
    assert said.startswith(f"Which method: {first} first.")
    assert TEDM in said
    assert SUPERVISED in said


def test_each_branch_tells_its_evidence() -> None:
    # Table 1, JSRT: 93.1 - 84.4 with one label, 96.6 - 95.3 with twelve.
    assert "8.7 to 1.3 Dice points on the same scanner" in _advice(6, 5000)
    assert "evidence is thin between 100 and 1000" in _advice(6, 300)
    assert "level on like images (Dice 0.903 and 0.910)" in _advice(6, 128)
    assert "too few" in _advice(6, 20)
    # Table 3: 89.6 - 85.1 and 69.5 - 59.8.
    assert "4.5 Dice points behind with 34 000 brain volumes, 9.7 behind with 33 tumour patients" in _advice(100, 5000)
    # Table 3: 71.0 - 54.6 and 27.3 - 12.5; with three 81.0 - 76.8 and 35.6 - 30.9.
    assert "14.8 to 16.4 Dice points with one labelled patient and by 4.2 to 4.7 with three" in _advice(2, 300, 3)
    # Table 3, 6 and 12 patients: 83.2 - 85.1 is the worst, 41.9 - 40.7 the best.
    assert "between 1.9 Dice points behind and 1.2 ahead" in _advice(6, 300, 3)
    assert "fewer than 268 volumes" in _advice(1, 40, 3)


def test_without_unlabelled_images_supervised_is_advised_and_tedm_is_still_named() -> None:
    said = _advice(6, 0)
    assert said.startswith(f"Which method: {SUPERVISED}. There are no unlabelled images")
    assert TEDM in said


def test_without_labels_pretraining_can_begin_and_without_images_nothing_is_said() -> None:
    assert "`msd pretrain tedm 11`" in _advice(0, 50)
    assert _advice(0, 0) == ""


def test_tests_on_other_scanners_speak_for_pretraining_where_that_was_measured() -> None:
    known, other = frozenset({"A"}), frozenset({"A", "B"})
    # Table 1, NIH: the least lead is 92.9 - 81.5, the greatest 89.2 - 71.4.
    seen = _advice(6, 5000, labelled_domains=known, unlabelled_domains=other, test_domains=other)
    assert "also of B, without labels there: TEDM led by 11.4 to 17.8 Dice points" in seen
    # Table 1, Montgomery: 91.4 - 83.0 and 90.5 - 77.1, with all labels 95.1 - 94.1.
    unseen = _advice(6, 5000, labelled_domains=known, unlabelled_domains=known, test_domains=other)
    assert "8.4 to 13.4 Dice points with 1 to 12 labels, and 1.0 with 197" in unseen
    few = _advice(6, 50, labelled_domains=known, test_domains=other)
    assert "measured on many radiographs only" in few
    for nothing_new in ({"test_domains": other}, {"labelled_domains": other, "test_domains": known}):
        assert "without labels there" not in _advice(6, 5000, **nothing_new)


def test_a_plan_says_which_method_for_its_own_data(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "measure_training", lambda *_: 1000)
    folder = make_dataset(n_dims=2, n_labelled=3, n_test=1, n_unlabelled=3)
    info = json.loads((folder / "dataset.json").read_text())
    info["groups"] = {"case_tr_00": "anna", "case_tr_01": "anna"}
    info["domains"] = {"case_tr_00": "A", "case_un_00": "C", "case_ts_00": "B"}
    (folder / "dataset.json").write_text(json.dumps(info))
    request = plan.PlanRequest(dataset=str(folder), workspace=Workspace(tmp_path / "workspace"), memory="2G")
    report = plan.plan_dataset(request)
    assert plan.count_data(open_dataset(folder), report.plan) == DataCounts(
        labelled_groups=2,
        unlabelled=3,
        n_dims=2,
        labelled_domains=frozenset({"A"}),
        unlabelled_domains=frozenset({"C"}),
        test_domains=frozenset({"B"}),
    )
    said = " ".join(report.plan.explanation)
    assert "Which method: `msd train supervised Dataset001_Phantom` first. You have 2 labelled" in said
    assert "also of B, without labels there" in said


def test_the_own_trial_is_that_of_the_results_page() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
    for column, (tedm, supervised) in enumerate(OWN_TRIAL.values(), 3):
        for method, score in (("tedm", tedm), ("supervised", supervised)):
            (row,) = [line for line in page.splitlines() if line.startswith(f"| 6 | `{method}` | recommended |")]
            assert row.split("|")[column + 1].strip().startswith(f"**{score:.3f}**")
