"""Methods that start from a pretraining: made once, used again, never seeing what scores depend on, exact to resume."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from msd_shell import done, msd, tree
from safetensors.numpy import load_file

from medsegdiff_cli.methods import denoising, generating
from medsegdiff_cli.methods.pixel_probes import PixelProbes
from medsegdiff_cli.planning import scales
from medsegdiff_cli.workflows import plan, run_setup, train
from medsegdiff_cli.workflows.phantoms import ChestCohort, write_chests

# What the tests share is trained once, in one process.
pytestmark = pytest.mark.xdist_group("pretrained")

WORK = ["--workers", 0]
FIRST, SECOND = "Dataset001_Chest", "Dataset002_Other"
# A recipe's pretraining takes 2 and its pixel classifier 0.25 of the steps of a scale.
SCALE_STEPS, PRETRAINING_STEPS, METHOD_STEPS = 8, 16, 2
AT_ONCE = ["--max-time", "0.001s"]
PAPER = ["--preset", "paper", "--set", "feature_cache=true", "--set", "timesteps=[1,50]", "--set", "pretrain.steps=2"]


@pytest.fixture(scope="module", autouse=True)
def few_steps(quick_machine):
    """Make the scale `tiny` a few steps of a small network; memory and pictures are tested elsewhere."""
    table = replace(scales.SCALES["tiny", 2], model_channels=8, channel_mult=(1, 2), steps=SCALE_STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, ("tiny", 2), table)
        for module in (plan, run_setup):
            patch.setattr(module, "measure_training", lambda *_: 1000)
        patch.setattr(train, "_PICTURES", {2: 1, 3: 1})
        patch.setattr(generating, "_PICTURE_STEPS", 5)
        yield


@dataclass(frozen=True)
class Place:
    """A workspace of two planned datasets, and `msd` in it."""

    workspace: Path

    def msd(self, *words):
        return msd(*words, "--workspace", self.workspace)

    def done(self, *words):
        return done(*words, "--workspace", self.workspace)

    @property
    def results(self) -> Path:
        return self.workspace / "results" / FIRST

    @property
    def dataset(self) -> Path:
        return self.workspace / "raw" / FIRST

    def fold(self, run: str) -> Path:
        return self.results / run / "fold_0"

    def pretrainings(self) -> list[str]:
        return sorted(path.name for path in self.results.glob("pretrain-*"))


def record_of(fold: Path) -> dict:
    return json.loads((fold / "run.json").read_text())


def recipe_of(fold: Path) -> dict:
    return yaml.safe_load((fold / "recipe.yaml").read_text())


def weights_of(fold: Path) -> dict[str, np.ndarray]:
    return load_file(fold / "checkpoints" / "last.safetensors")


def assert_same_network(fold: Path, parent: Path) -> None:
    theirs = {name: value for name, value in weights_of(parent).items() if name.startswith("model.network.")}
    mine = weights_of(fold)
    assert theirs
    assert set(mine) - set(theirs)
    assert [name for name in theirs if mine[name].tobytes() != theirs[name].tobytes()] == []


@pytest.fixture(scope="module")
def planned(few_steps, tmp_path_factory) -> Path:
    """A workspace of two datasets of chests, the second from another scanner and of another size, both planned."""
    root = tmp_path_factory.mktemp("planned")
    cohorts = (
        ChestCohort(train={"A": 5}, unlabelled={"A": 1, "B": 1}, test={"A": 2}, shape=(32, 32)),
        ChestCohort(train={"B": 3}, shape=(40, 32), seed=1),
    )
    flags = ["--images", "**/*.png", "--labels", "**/labels/*.png", "--label-map", "1:lung"]
    for number, cohort in enumerate(cohorts, 1):
        source = write_chests(root / f"source{number}", cohort)
        name = (FIRST, SECOND)[number - 1].partition("_")[2]
        tests = ["--test-list", source / "tests.txt"] if cohort.test else []
        into = ["--workspace", root / "workspace", *WORK]
        done("convert", "folder", source, "--dataset", number, "--name", name, *flags, *tests, *into)
        done("plan", number, "--scale", "tiny", *into)
    return root / "workspace"


@pytest.fixture
def fresh(planned, tmp_path) -> Place:
    """A workspace in which nothing was trained."""
    return Place(shutil.copytree(planned, tmp_path / "workspace"))


@dataclass(frozen=True)
class Trained(Place):
    """A workspace in which `tedm` was trained on the first dataset; what that said, and its pretraining's files."""

    said: str
    pretraining: dict[str, bytes]


@pytest.fixture(scope="module")
def trained(planned, tmp_path_factory) -> Trained:
    place = Place(shutil.copytree(planned, tmp_path_factory.mktemp("trained") / "workspace"))
    said = place.done("train", "tedm", 1, *WORK).stderr
    assert {path.name for path in place.results.iterdir()} == {"pretrain-diffusion__2d", "tedm__2d"}
    return Trained(place.workspace, said, tree(place.fold("pretrain-diffusion__2d")))


def assert_used_again(trained: Trained, said: str) -> None:
    assert "the pretraining is finished and used again" in said
    assert str(trained.fold("pretrain-diffusion__2d")) in said
    assert trained.pretrainings() == ["pretrain-diffusion__2d"]
    assert tree(trained.fold("pretrain-diffusion__2d")) == trained.pretraining


def test_a_method_is_pretrained_first_and_starts_from_there(trained):
    assert trained.said.index("pretraining first") < trained.said.index("starting from")
    first, second = record_of(trained.fold("pretrain-diffusion__2d")), record_of(trained.fold("tedm__2d"))
    for record, steps in ((first, PRETRAINING_STEPS), (second, METHOD_STEPS)):
        assert [(s["status"], s["steps_done"], s["steps"]) for s in record["stages"]] == [("finished", steps, steps)]
    file = trained.fold("pretrain-diffusion__2d") / "checkpoints" / "last.safetensors"
    assert second["parent"] == {
        "run": "pretrain-diffusion__2d/fold_0",
        "weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert_same_network(trained.fold("tedm__2d"), trained.fold("pretrain-diffusion__2d"))
    assert (trained.fold("pretrain-diffusion__2d") / "samples.png").is_file()
    assert not (trained.fold("pretrain-diffusion__2d") / "validation").exists()
    unlabelled = sorted(path.name[:-9] for path in (trained.dataset / "imagesUn").iterdir())
    assert len(unlabelled) == 2
    assert sorted(first["train_cases"]) == sorted([*second["train_cases"], *unlabelled])


def test_network_and_noise_schedule_are_those_of_the_pretraining(trained):
    theirs, mine = (recipe_of(trained.fold(name)) for name in ("pretrain-diffusion__2d", "tedm__2d"))
    shared = theirs["method_settings"]
    assert {"network", "model_channels", "channel_mult", "strides", "schedule", "distance"} <= set(shared)
    assert {name: mine["method_settings"][name] for name in shared} == shared
    assert mine["patch_size_voxels"] == theirs["patch_size_voxels"]


def test_another_method_seed_and_label_budget_use_the_same_pretraining(trained):
    said = trained.done("train", "ledm", 1, "--cases", 2, "--seed", 1, "--set", "steps=1", *WORK).stderr
    assert_used_again(trained, said)
    fold = trained.fold("ledm__2d__n2__seed1__training-steps-1")
    assert len(record_of(fold)["train_cases"]) == 2
    assert_same_network(fold, trained.fold("pretrain-diffusion__2d"))


def test_the_same_command_again_computes_nothing(trained, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed again")

    before = tree(trained.fold("tedm__2d"))
    for owner, name in ((denoising.Denoising, "loss"), (PixelProbes, "loss"), (PixelProbes, "predict")):
        monkeypatch.setattr(owner, name, refuse)
    outcome = trained.done("train", "tedm", 1, "--json", *WORK)
    assert_used_again(trained, outcome.stderr)
    after = tree(trained.fold("tedm__2d"))
    kept = {"run.json", "metrics.jsonl"} | {name for name in before if name.endswith((".safetensors", ".png"))}
    assert len(kept) > 4
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    summary = json.loads((trained.fold("tedm__2d") / "validation" / "summary.json").read_text())
    assert outcome.json["validation"]["foreground_mean"] == summary["foreground_mean"]


def test_a_step_probe_reads_the_one_timestep_it_was_told(trained):
    assert_used_again(trained, trained.done("train", "step-probe", 1, "--step", 800, "--set", "steps=1", *WORK).stderr)
    settings = recipe_of(trained.fold("step-probe__2d__timesteps-800__training-steps-1"))["method_settings"]
    assert (settings["timesteps"], settings["hidden"]) == ([800], [])


def test_a_begun_pretraining_goes_on_and_ends_with_the_same_weights(fresh, trained):
    stopped = fresh.msd("train", "tedm", 1, *AT_ONCE, *WORK)
    assert stopped.code == 7
    assert f"of {PRETRAINING_STEPS} of stage 'pretrain'" in stopped.stderr
    assert not fresh.fold("tedm__2d").exists()
    assert "stage 'pretrain' goes on at step" in fresh.done("train", "tedm", 1, *WORK).stderr
    for run in ("pretrain-diffusion__2d", "tedm__2d"):
        digests = [record_of(place.fold(run))["weights_digest"] for place in (fresh, trained)]
        assert digests[0] == digests[1] != ""


def test_a_begun_classifier_goes_on_and_ends_with_the_same_weights(trained):
    stopped = trained.msd("train", "tedm", 1, "--name", "late", *AT_ONCE, *WORK)
    assert stopped.code == 7
    assert f"saved at step 1 of {METHOD_STEPS} of stage 'finetune'" in stopped.stderr
    said = trained.done("train", "tedm", 1, "--name", "late", *WORK).stderr
    assert "stage 'finetune' goes on at step 1" in said
    assert_used_again(trained, said)
    late, whole = (record_of(trained.fold(run))["weights_digest"] for run in ("tedm__2d__late", "tedm__2d"))
    assert late == whole != ""


def test_a_dry_run_forecasts_both_trainings_and_writes_none(fresh):
    outcome = fresh.done("train", "tedm", 1, "--dry-run", "--json", *WORK)
    assert outcome.json["run"] == str(fresh.fold("tedm__2d"))
    forecast = outcome.json["forecast"]
    assert forecast["pretraining steps"] == f"{PRETRAINING_STEPS} (pretrain)"
    assert forecast["steps"] == f"{METHOD_STEPS} (finetune)"
    assert "about 0 windows" in forecast["pretraining network forwards"]
    assert not (fresh.workspace / "results").exists()


def test_a_finished_pretraining_is_not_forecast(trained):
    forecast = trained.done("train", "ledme", 1, "--dry-run", "--json", *WORK).json["forecast"]
    assert forecast["steps"] == f"{METHOD_STEPS} (finetune)"
    assert not [name for name in forecast if name.startswith("pretraining")]
    assert not trained.fold("ledme__2d").exists()


def test_msd_pretrain_makes_the_run_that_msd_train_would(trained):
    outcome = trained.done("pretrain", "tedm", 1, "--dry-run", "--json", *WORK)
    assert outcome.json["run"] == str(trained.fold("pretrain-diffusion__2d"))
    assert trained.done("pretrain", "diffusion", 1, "--json", *WORK).json["validation"] is None


def test_finetuning_elsewhere_keeps_the_network_and_names_the_parent(trained):
    parent = trained.fold("pretrain-diffusion__2d")
    said = trained.done("finetune", "tedm", 2, "--from", parent, "--json", *WORK)
    fold = Path(said.json["run"])
    assert (fold.parent.parent.name, fold.parent.name) == (SECOND, "tedm__2d__from-pretrain-diffusion-2d")
    assert_same_network(fold, parent)
    assert record_of(fold)["parent"]["run"] == "pretrain-diffusion__2d/fold_0"
    assert recipe_of(fold)["method_settings"]["strides"] == recipe_of(parent)["method_settings"]["strides"]
    assert not list((trained.workspace / "results" / SECOND).glob("pretrain-*"))
    assert tree(parent) == trained.pretraining


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tedm", 1, "--set", "pixles=8"], "did you mean 'pixels'?"),
        (["train", "tedm", 1, "--set", "pretrain.stepz=8"], "did you mean 'steps'?"),
        (["train", "supervised", 1, "--set", "pretrain.steps=8"], "no section 'pretrain'"),
        (["pretrain", "diffusion", 1, "--set", "pixels=8"], "no setting 'pixels'"),
        (["pretrain", "recycling", 1], "'recycling' makes no pretraining of its own"),
        (["train", "pretrain-diffusion", 1], "msd pretrain diffusion"),
        (["train", "diffusion", 1], "'diffusion' is a pretraining, no method"),
        (["finetune", "hybrid", 2, "--from", "RUN"], "methods that start from it: tedm, "),
        (["finetune", "supervised", 2, "--from", "RUN", "--min-coverage", 1, "--dry-run"], "of the network can start"),
        (["train", "hybrid", 1, "--set", "mask_weight=1"], "--set pretrain.mask_weight=VALUE"),
        (["finetune", "tedm", 2, "--from", "RUN", "--set", "model_channels=4"], "settled by the run"),
        (["finetune", "tedm", 2, "--from", "RUN", "--set", "pretrain.steps=4"], "settled by the run"),
        pytest.param(
            ["finetune", "tedm", 2, "--from", "RUN", "--set", "method.schedule={name: linear}"],
            "settled by the run",
            marks=pytest.mark.fault("F100"),
        ),
    ],
)
def test_what_cannot_be_meant_is_code_2_and_leaves_no_run(trained, words, message):
    before = set((trained.workspace / "results").glob("*/*"))
    parent = trained.fold("pretrain-diffusion__2d")
    outcome = trained.msd(*(parent if word == "RUN" else word for word in words), *WORK)
    assert (outcome.code, message in outcome.stderr) == (2, True), outcome.stderr
    assert set((trained.workspace / "results").glob("*/*")) == before


def test_a_pretraining_predicts_and_scores_nothing_and_says_what_to_do(trained, tmp_path):
    outcome = trained.msd("predict", "pretrain-diffusion__2d", trained.dataset / "imagesTs", tmp_path / "out", *WORK)
    assert outcome.code == 2
    assert "is a pretraining, which cannot predict" in outcome.stderr
    assert "msd finetune METHOD DATASET --from RUN" in outcome.stderr
    assert not (tmp_path / "out").exists()
    outcome = msd("evaluate", "--cv", trained.results / "pretrain-diffusion__2d")
    assert outcome.code == 2
    assert "no validated fold" in outcome.stderr


def test_runs_list_the_pretraining_without_a_score(trained):
    rows = {row["run"]: row for row in trained.done("runs", 1, "--json").json["runs"]}
    row = rows["pretrain-diffusion__2d"]
    steps = f"{PRETRAINING_STEPS}/{PRETRAINING_STEPS}"
    assert (row["state"], row["steps"], row["dice"]) == ("finished", steps, None)
    assert rows["tedm__2d"]["dice"] is not None


def test_a_changed_dataset_asks_for_a_new_pretraining(trained, tmp_path):
    place = Place(shutil.copytree(trained.workspace, tmp_path / "workspace"))
    (place.dataset / "imagesUn" / "A_unlabelled-0000_0000.png").unlink()
    outcome = place.msd("train", "tedm", 1, *WORK)
    assert outcome.code == 2
    assert "other settings (train_cases)" in outcome.stderr
    assert "msd pretrain with --overwrite" in outcome.stderr


def test_unlabelled_test_images_are_refused_or_confessed(fresh, tmp_path):
    copied = fresh.dataset / "imagesUn" / "hidden_0000.png"
    shutil.copy(next((fresh.dataset / "imagesTs").iterdir()), copied)
    # Settings of the pretraining and of the method, in one command.
    settings = ["model_channels=4", "distance=l1", "pretrain.steps=2", "pixels=8", "steps=1"]
    words = ["train", "tedm", 1, *WORK, *(word for setting in settings for word in ("--set", setting))]
    outcome = fresh.msd(*words)
    assert outcome.code == 3
    assert "1 unlabelled images are also test or validation images: hidden" in outcome.stderr
    assert not (fresh.workspace / "results").exists()

    description = json.loads((fresh.dataset / "dataset.json").read_text())
    (fresh.dataset / "dataset.json").write_text(json.dumps({**description, "unlabelled_test_overlap": "allowed"}))
    outcome = fresh.done(*words, "--json")
    assert "pretraining sees 1 test or validation images" in outcome.stderr
    (name,) = fresh.pretrainings()
    pretraining, fold = fresh.fold(name), Path(outcome.json["run"])
    assert "hidden" in record_of(pretraining)["train_cases"]
    assert [record_of(f)["unlabelled_test_overlap"] for f in (pretraining, fold)] == ["allowed", "allowed"]
    assert_routed(recipe_of(pretraining), recipe_of(fold))

    note = "test images were seen, without labels, in pretraining"
    done("predict", fold, fresh.dataset / "imagesTs", tmp_path / "out", *WORK)
    outcome = done("evaluate", tmp_path / "out", fresh.dataset, *WORK)
    assert note in outcome.stdout + outcome.stderr
    assert note in json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]

    # A baseline that sees no unlabelled image has nothing to confess.
    run = Path(fresh.done("train", "supervised", 1, "--set", "steps=1", "--json", *WORK).json["run"])
    assert note not in (run / "validation" / "summary.json").read_text()


def assert_routed(pretraining: dict, method: dict) -> None:
    assert [r["method_settings"]["model_channels"] for r in (pretraining, method)] == [4, 4]
    assert [r["method_settings"]["distance"] for r in (pretraining, method)] == ["l1", "l1"]
    assert [r["training"]["steps"] for r in (pretraining, method)] == [2, 1]
    assert method["method_settings"]["pixels"] == 8
    assert "pixels" not in pretraining["method_settings"]


def test_features_kept_on_disk_change_no_weights_and_are_gone_afterwards(fresh):
    size = ["--geometry", "resize", "--size", 32, "--scale", "tiny"]
    fresh.done("plan", 1, "--plans-name", "plans_pretrain-diffusion_paper", *size, *WORK)
    # Fresh noise is refused before the pretraining is made.
    outcome = fresh.msd("train", "tedm", 1, *PAPER, *WORK)
    assert (outcome.code, "--set noise=shared" in outcome.stderr) == (2, True), outcome.stderr
    assert not (fresh.workspace / "results").exists()

    shared = ["--set", "noise=shared", *WORK]
    fresh.done("pretrain", "tedm", 1, "--preset", "paper", "--set", "steps=2", *WORK)
    stopped = fresh.msd("train", "tedm", 1, *PAPER, *shared, *AT_ONCE, "--name", "late")
    assert "the pretraining is finished and used again" in stopped.stderr
    assert (stopped.code, "saved at step 1 of" in stopped.stderr) == (7, True), stopped.stderr
    (late,) = fresh.results.glob("tedm__*__late/fold_0")
    # Four training images at two timesteps. What is read and what is computed again must be the same.
    kept = sorted((late / "features").iterdir())
    assert 2 <= len(kept) <= 4 * 2
    for path in kept[::2]:
        path.unlink()
    fresh.done("train", "tedm", 1, *PAPER, *shared, "--name", "late")
    fresh.done("train", "tedm", 1, *PAPER, *shared, "--name", "whole")
    (whole,) = fresh.results.glob("tedm__*__whole/fold_0")
    assert not (late / "features").exists()
    assert not (whole / "features").exists()
    assert record_of(late)["weights_digest"] == record_of(whole)["weights_digest"] != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tedm", "--set", "noise=shared"], "augmentation changes every image"),
        (["supervised", "--preset", "paper"], "has no features to keep"),
        (["tedm", "--set", "noise=shared", "--set", "pretrain.feature_cache=true"], "has no frozen features"),
    ],
)
def test_a_feature_cache_without_use_is_code_2(fresh, words, message):
    outcome = fresh.msd("train", words[0], 1, *words[1:], "--scale", "tiny", "--set", "feature_cache=true", *WORK)
    assert (outcome.code, message in outcome.stderr) == (2, True), outcome.stderr
    assert not (fresh.workspace / "results").exists()
