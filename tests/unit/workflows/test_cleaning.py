"""`msd runs clean`: what is listed, what never is, and that nothing goes unasked."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsegdiff_cli.artifacts.plan import Plan, write_plan
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK, Workspace
from medsegdiff_cli.preprocessing.case import CaseJob
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workflows.clean import find_removable, remove

DATASET = "Dataset004_Hippocampus"
MONTHS = 90 * 86_400


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def age(folder: Path, seconds: float = MONTHS) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)
    return folder


def make_run(place: Workspace, run: str, status: str = "running", parent: str | None = None, dataset: str = DATASET):
    folder = place.results / dataset / run / "fold_0"
    facts = {"dataset": dataset, "dataset_path": "/data", "config": "3d", "fold": "0", "seed": 0, "msd_version": "0"}
    stages = (StageRecord(name="train", status=status, steps_done=3, steps=9),)
    cases = {"train_cases": ("a",), "val_cases": (), "plan_digest": "p", "recipe_digest": "r", "method": "supervised"}
    write_run(folder, RunRecord(**facts, **cases, stages=stages, parent={"run": parent} if parent else {}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_00000003.safetensors").write_bytes(b"x" * 1000)
    return age(folder)


def plan_of(**changes) -> Plan:
    content = {
        "dataset": DATASET,
        "fingerprint_digest": "0" * 64,
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "organ": 1},
        "channels": [{"name": "MR", "normalisation": "zscore"}],
        "geometry": "spacing",
        "transpose": [0, 1, 2],
        "default_config": "3d",
        "memory_bytes": 10**9,
        "configurations": {
            "3d": {
                "spacing_mm": [1.0, 1.0, 1.0],
                "median_shape_voxels": [36, 50, 35],
                "patch_size_voxels": [40, 56, 40],
                "batch_size": 2,
                "strides": [[2, 2, 2]],
                "batch_dice": False,
            }
        },
    }
    return Plan.model_validate({**content, **changes})


def make_store(place: Workspace, plan: Plan, name: str = "plans_3d") -> Path:
    """Store a case under the key that the plan gives it."""
    folder = place.preprocessed / DATASET / name
    store, settings = PreprocessedStore(folder), transform_settings(plan, "3d")
    job = CaseJob(files=None, part="Tr", settings=settings, scheme=plan.label_scheme(), store=store, seed=0)
    folder.mkdir(parents=True)
    known = {"image_0000": {"sha256": "a" * 64}, "label": {"sha256": "b" * 64}}
    key = job.key({role: facts["sha256"] for role, facts in known.items()})
    store.write_properties("case", {"key": key, "inputs": known, "class_voxels": None})
    (folder / "case.npy").write_bytes(b"x" * 500)
    return age(folder)


def listed(place: Workspace, **settings) -> dict[str, str]:
    return {str(found.path.relative_to(place.root)): found.reason for found in find_removable(place, **settings)}


def clean(place: Workspace, *words: str):
    return CliRunner().invoke(app, ["runs", "clean", "--workspace", str(place.root), *words])


def test_an_empty_workspace_has_nothing_to_clean(place):
    assert listed(place) == {}
    assert clean(place).exit_code == 0


def test_unfinished_runs_are_listed_by_age_and_finished_ones_only_when_asked_for(place):
    make_run(place, "supervised__3d__old")
    make_run(place, "supervised__3d__done", status="finished")
    young = make_run(place, "supervised__3d__young")
    (young / "metrics.jsonl").write_text("{}")
    (make_run(place, "supervised__3d__broken") / "run.json").write_text("{")
    age(place.results / DATASET / "supervised__3d__broken")
    results = f"results/{DATASET}/supervised__3d__"
    assert listed(place) == {f"{results}old/fold_0": "running, 3/9 steps"}
    assert list(listed(place, states=["finished", "damaged"])) == [f"{results}broken/fold_0", f"{results}done/fold_0"]
    assert listed(place, older_than_s=2 * MONTHS) == {}
    assert len(listed(place, older_than_s=1e-3)) == 2
    with pytest.raises(UsageError, match="no state 'finish'"):
        listed(place, states=["finish"])


def test_what_another_run_started_from_is_never_listed(place):
    make_run(place, "pretrain-diffusion__3d", status="finished")
    make_run(place, "pretrain-diffusion__3d__alone", status="finished")
    make_run(place, "tedm__3d", status="finished", parent="pretrain-diffusion__3d/fold_0", dataset="Dataset005_Other")
    for states in (["finished"], ["planned", "running", "damaged", "finished"]):
        found = listed(place, states=states)
        assert f"results/{DATASET}/pretrain-diffusion__3d/fold_0" not in found
        assert f"results/{DATASET}/pretrain-diffusion__3d__alone/fold_0" in found


def test_stores_that_no_plan_asks_for_are_listed(place):
    store, plans = make_store(place, plan_of()), place.preprocessed / DATASET / "plans.yaml"
    name = f"preprocessed/{DATASET}/plans_3d"
    assert listed(place) == {name: "its plan (plans.yaml) is gone"}
    write_plan(plans, plan_of())
    assert listed(place) == {}
    write_plan(plans, plan_of(explanation=["other words"], memory_bytes=5))
    assert listed(place) == {}, "what does not change the images leaves them alone"
    write_plan(plans, plan_of(crop="none"))
    assert listed(place) == {name: "made with an earlier plan"}
    age(place.root, 60)
    assert listed(place) == {}
    plans.write_text("not: a plan")
    age(store)
    assert listed(place) == {}, "a plan that cannot be read decides over nothing"


def test_stores_of_a_dataset_that_is_being_trained_on_stay(place):
    make_store(place, plan_of())
    (make_run(place, "supervised__3d") / "metrics.jsonl").write_text("{}")
    assert listed(place) == {}


def test_nothing_is_deleted_without_yes_and_then_what_was_listed(place):
    make_run(place, "supervised__3d__old")
    kept = make_run(place, "supervised__3d__done", status="finished")
    store = make_store(place, plan_of())
    before = sorted(place.root.rglob("*"))
    first = clean(place, "--older-than", "30d", "--json")
    answer = json.loads(first.stdout)
    assert (first.exit_code, answer["deleted"], len(answer["removable"])) == (0, False, 2)
    assert answer["bytes"] == sum(item["bytes"] for item in answer["removable"]) > 1500
    shown = clean(place)
    assert "say --yes" in shown.stderr
    assert "supervised__3d__old/fold_0" in shown.stdout
    assert sorted(place.root.rglob("*")) == before
    assert clean(place, "--yes").exit_code == 0
    assert kept.is_dir()
    assert not store.exists()
    assert not (place.results / DATASET / "supervised__3d__old").exists()
    assert json.loads(clean(place, "--json").stdout)["removable"] == []


def test_links_are_neither_listed_nor_followed(place, tmp_path):
    outside = make_run(Workspace(tmp_path / "elsewhere"), "supervised__3d")
    link = place.results / DATASET / "supervised__3d__link"
    link.mkdir(parents=True)
    (link / "fold_0").symlink_to(outside)
    inner = make_run(place, "supervised__3d__old")
    (inner / "linked").symlink_to(outside)
    assert list(listed(place, older_than_s=1e-3)) == [str(inner.relative_to(place.root))]
    assert clean(place, "--older-than", "1s", "--yes").exit_code == 0
    assert (outside / "run.json").is_file()


def test_a_run_that_is_being_written_is_not_deleted(place):
    folder = make_run(place, "supervised__3d__old")
    (found,) = find_removable(place)
    with locked(folder / LOCK), pytest.raises(UsageError, match="is writing here"):
        remove(found)
    assert (folder / "run.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "clean", "--older-than", "soon"],
        ["runs", "clean", "a", "b"],
        ["runs", "--older-than", "3d"],
        ["runs", "--state", "planned"],
        ["runs", "clean", "--delete", "x"],
        ["runs", "clean", "--state", "old"],
    ],
)
def test_wrong_words_are_wrong_usage(place, words):
    assert CliRunner().invoke(app, [*words, "--workspace", str(place.root)]).exit_code == 2
