"""The shell contract of every verb: one JSON object, exit codes, nearest matches, and dry runs that write nothing."""

import json
import shutil

import pytest
from msd_shell import QUICK, done, msd, trained, tree

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture
def copied(lab, tmp_path):
    """A copy of the lab's workspace that a test may change."""
    shutil.copytree(lab.workspace, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture(scope="module")
def predictions(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract") / "out"
    done("predict", lab.run, lab.images, folder, "--workers", 0)
    return folder


VERBS = {
    "check": "check 1 --workers 0",
    "preview": "preview 1 --count 1 --output {tmp}/sheet.png",
    "plan": "plan 1 --workers 0 --scale tiny",
    "preprocess": "preprocess 1 --config 3d --workers 0",
    "predict": "predict {run} {images} {tmp}/out --workers 0",
    "runs": "runs",
    "methods": "methods",
    "datasets": "datasets",
    "doctor": "doctor",
}


@pytest.mark.parametrize("verb", VERBS)
def test_json_prints_one_object_on_stdout(lab, tmp_path, verb):
    words = VERBS[verb].format(run=lab.run, images=lab.images, tmp=tmp_path).split()
    place = [] if verb in ("methods", "datasets") else ["--workspace", lab.workspace]
    assert isinstance(done(*words, *place, "--json").json, dict)


def test_json_of_convert_train_and_evaluate_is_one_object(lab, predictions, tmp_path):
    words = "--dataset 7 --name Again --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule"
    report = done("convert", "folder", lab.source, *words.split(), "--workspace", tmp_path, "--workers", 0, "--json")
    assert isinstance(report.json, dict)
    assert done("train", "supervised", 1, "--workspace", lab.workspace, *QUICK, "--config", "3d", "--json").json["run"]
    assert done("evaluate", predictions, lab.dataset, "--workers", 0, "--json").json["foreground_mean"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "check Nowhere"),
        (2, "train supervized 1"),
        (2, "train supervised 1 --devise cpu"),
        (2, "chek 1"),
        (4, "doctor --require free=999999T"),
        (8, "evaluate {predictions} {dataset} --workers 0 --fail-below dice=0.999"),
    ],
)
def test_an_error_also_leaves_one_json_object_and_its_code(lab, predictions, code, words):
    words = words.format(predictions=predictions, dataset=lab.dataset)
    outcome = msd(*words.split(), "--workspace", lab.workspace, "--json")
    assert outcome.code == code
    assert isinstance(outcome.json, dict)
    assert "error" in outcome.stderr.lower()


def test_a_dataset_with_errors_fails_its_check_with_code_3(copied):
    next((copied / "raw" / "Dataset001_Phantom" / "labelsTr").iterdir()).unlink()
    (copied / "raw" / "Dataset001_Phantom" / "imagesTr" / "broken_0000.nii.gz").write_bytes(b"no image")
    outcome = msd("check", 1, "--workspace", copied, "--workers", 0, "--json")
    assert outcome.code == 3
    assert any(problem["severity"] == "error" for problem in outcome.json["problems"])


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("train supervised 1 --devise cpu", "--device"),
        ("train supervized 1", "supervised"),
        ("train supervised Phantm", "Phantom"),
        ("train supervised 1 --set learning_rte=1", "learning_rate"),
        ("train supervised 1 --set trainig.steps=1", "training"),
        ("train supervised 1 --config 3dd", "3d"),
        ("train supervised 1 --scale tinny", "tiny"),
        ("train supervised 1 --preset recomended", "recommended"),
        ("train supervised 1 --recipe supervise", "supervised"),
        ("train supervised 1 --fold 9", "0"),
        ("train supervised 1 --fold first", "0"),
        ("train supervised 1 --selection bst", "best"),
        ("train supervised 1 --cases 3 --count grups", "groups"),
        ("train supervised 1 --cases 99", "choose 1 to"),
        ("train supervised 1 --set steps=many", "steps"),
        ("train supervised 1 --set steps", "="),
        ("train supervised 1 --set channel_mult=[1,2", "channel_mult"),
        ("train supervised 1 --set strides=[[2,2,2]]", "plan"),
        ("train supervised 1 --set attention_levels=[7]", "attention_levels"),
        ("train supervised 1 --config 3d --set patch_size_voxels=[7,7,7]", "8"),
        ("train supervised 1 --name a/b", "a/b"),
        ("train supervised 1 --max-time soon", "6h"),
        ("train supervised 1 --device tpu", "cpu"),
        ("plan 1 --workers 0 --geometry rezise", "resize"),
        ("plan 1 --workers 0 --scale tinny", "tiny"),
        ("plan 1 --workers 0 --memory lots", "8G"),
        ("convert foldr {dataset} --dataset 2 --name Two", "folder"),
        ("predict supervized__3d {images} {tmp}/out", "supervised"),
        ("predict {run} {images} {tmp}/out --checkpoint lst", "last"),
        ("predict {run}/.. {images} {tmp}/out --folds 3", "trained"),
        ("predict {run} {tmp}/nothing {tmp}/out", "nothing"),
        ("predict {run} {dataset} {tmp}/out", "imagesTs"),
        ("predict {run} {images}", "OUTPUT"),
        ("predict {run} {images} {tmp}/out --masks {tmp}/nowhere", "nowhere"),
        ("evaluate {predictions} {dataset} --workers 0 --fail-below dise=0.5", "dice"),
        ("evaluate {predictions} {dataset} --grid nativ", "native"),
        ("doctor --require fre=5G", "free"),
        ("runs --delete supervized__3d --yes", "supervised"),
    ],
)
def test_a_wrong_word_is_code_2_with_the_nearest_match(lab, predictions, tmp_path, words, nearest):
    values = {"run": lab.run, "images": lab.images, "dataset": lab.dataset, "predictions": predictions, "tmp": tmp_path}
    outcome = msd(*words.format(**values).split(), "--workspace", lab.workspace)
    assert outcome.code == 2, outcome.stderr
    assert nearest in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_in_a_plan_is_code_2_with_the_nearest_match(copied):
    plan = copied / "preprocessed" / "Dataset001_Phantom" / "plans.yaml"
    plan.write_text(plan.read_text().replace("default_scale:", "defualt_scale:"))
    outcome = msd("train", "supervised", 1, "--workspace", copied, *QUICK)
    assert outcome.code == 2
    assert "default_scale" in outcome.stderr


def test_a_run_whose_plan_was_edited_stops_and_names_the_keys(copied):
    plan = copied / "preprocessed" / "Dataset001_Phantom" / "plans.yaml"
    assert "interpolation: cubic" in plan.read_text()
    plan.write_text(plan.read_text().replace("interpolation: cubic", "interpolation: linear"))
    words = ["train", "supervised", 1, "--workspace", copied, *QUICK, "--config", "3d"]
    outcome = msd(*words)
    assert outcome.code == 2
    assert "plan: interpolation" in outcome.stderr
    assert "--name" in outcome.stderr
    named = trained(copied, 1, "--config", "3d", "--name", "linear", "--set", "steps=1")
    assert named.parent.name.endswith("__linear")


def test_the_same_name_with_another_recipe_is_code_2(copied, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: supervised\ntitle: mine\npresets:\n  recommended: {training: {weight_decay: 0.5}}\n")
    words = ["train", "supervised", 1, "--workspace", copied, *QUICK, "--set", "steps=1", "--recipe", recipe]
    done(*words)
    recipe.write_text(recipe.read_text().replace("0.5", "0.25"))
    outcome = msd(*words)
    assert outcome.code == 2
    assert "recipe: training.weight_decay" in outcome.stderr


def test_planning_again_keeps_an_edited_plan(copied):
    plan = copied / "preprocessed" / "Dataset001_Phantom" / "plans.yaml"
    plan.write_text(plan.read_text().replace("interpolation: cubic", "interpolation: linear"))
    words = ["plan", 1, "--workspace", copied, "--workers", 0, "--scale", "tiny"]
    outcome = msd(*words)
    assert outcome.code == 2
    assert "interpolation" in outcome.stderr
    assert "interpolation: linear" in plan.read_text()
    done(*words, "--overwrite")
    assert "interpolation: cubic" in plan.read_text()


def test_a_preset_with_its_own_geometry_is_planned_where_training_looks_for_it(copied):
    words = ["--workspace", copied, "--workers", 0, "--json"]
    planned = done("plan", 1, "--method", "supervised", "--preset", "paper", *words).json
    assert planned["path"].endswith("/plans_supervised_paper.yaml")
    assert planned["plan"]["geometry"] == "resize"
    assert planned["plan"]["default_scale"] == "full"
    assert "20000 steps" in planned["preview"]["2d"][0]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "supervised", 1, *QUICK, "--set", "steps=7"],
        ["finetune", "supervised", 1, *QUICK, "--from", "{run}"],
        ["predict", "{run}", "{images}", "{tmp}/out"],
        ["preprocess", 1, "--config", "2d"],
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_forecasts_and_writes_nothing(lab, tmp_path, words):
    before = tree(lab.workspace).keys()
    values = {"run": lab.run, "images": lab.images, "tmp": tmp_path}
    words = [word.format(**values) if isinstance(word, str) else word for word in words]
    forecast = done(*words, "--workspace", lab.workspace, "--dry-run", "--json").json["forecast"]
    assert forecast
    assert tree(lab.workspace).keys() == before
    assert not (tmp_path / "out").exists()


def test_the_runs_are_listed_with_their_score_and_can_be_deleted(copied):
    (row,) = [row for row in done("runs", "--workspace", copied, "--json").json["runs"] if "__" in row["run"]][:1]
    summary = json.loads(
        (copied / "results" / row["dataset"] / row["run"] / "fold_0/validation/summary.json").read_text()
    )
    assert row["state"] == "finished"
    assert row["dice"] == pytest.approx(summary["foreground_mean"]["Dice"])
    gone = done("runs", "--workspace", copied, "--delete", row["run"], "--yes", "--json").json
    assert gone["deleted"].endswith(row["run"])
    assert not (copied / "results" / row["dataset"] / row["run"]).exists()
