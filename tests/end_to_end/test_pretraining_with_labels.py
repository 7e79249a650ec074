"""Pretrainings that see labels, through the command line: what they see, and what starts from them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from msd_shell import done, msd, write_oblique_source
from safetensors.numpy import load_file

from medsegdiff_cli.methods import generating
from medsegdiff_cli.planning import scales
from medsegdiff_cli.workflows import plan, run_setup, train
from medsegdiff_cli.workflows.phantoms import ChestCohort, write_chests

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pretrained-with-labels")]

WORK = ["--workers", 0]
LAST = "checkpoints/last.safetensors"
FIRST, SECOND = "Dataset001_Chest", "Dataset002_Other"


@pytest.fixture(scope="module", autouse=True)
def few_steps(quick_machine):
    """Make the scale `tiny` two steps of a small network; memory and pictures are tested elsewhere."""
    table = replace(scales.SCALES["tiny", 2], model_channels=8, channel_mult=(1, 2), steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, ("tiny", 2), table)
        for module in (plan, run_setup):
            patch.setattr(module, "measure_training", lambda *_: 1000)
        patch.setattr(train, "_PICTURES", {2: 1, 3: 1})
        patch.setattr(generating, "_PICTURE_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def workspace(few_steps, tmp_path_factory) -> Path:
    """Two planned datasets of chests: with and without labels; another scanner."""
    root = tmp_path_factory.mktemp("labels")
    cohorts = (
        ChestCohort(train={"A": 5}, unlabelled={"B": 2}, shape=(32, 32)),
        ChestCohort(train={"B": 4}, shape=(40, 32), seed=1),
    )
    flags = ["--images", "**/*.png", "--labels", "**/labels/*.png", "--label-map", "1:lung"]
    for number, cohort in enumerate(cohorts, 1):
        source = write_chests(root / f"source{number}", cohort)
        name = (FIRST, SECOND)[number - 1].partition("_")[2]
        into = ["--workspace", root / "workspace", *WORK]
        done("convert", "folder", source, "--dataset", number, "--name", name, *flags, *into)
        done("plan", number, "--scale", "tiny", *into)
    return root / "workspace"


def run_of(workspace: Path, name: str, dataset: str = FIRST) -> tuple[Path, dict, dict]:
    """Return a run's fold, record and recipe."""
    fold = workspace / "results" / dataset / name / "fold_0"
    return fold, json.loads((fold / "run.json").read_text()), yaml.safe_load((fold / "recipe.yaml").read_text())


@pytest.fixture(scope="module")
def hybrid(workspace) -> str:
    """What the hybrid pretraining of the first dataset said."""
    return done("pretrain", "hybrid", 1, *WORK, "--workspace", workspace).stderr


@pytest.fixture(scope="module")
def supervised(workspace) -> str:
    """What the supervised pretraining of the first dataset said."""
    return done("pretrain", "supervised", 1, *WORK, "--workspace", workspace).stderr


def test_hybrid_sees_labelled_and_unlabelled_images_and_says_its_lambda(workspace, hybrid):
    fold, record, _ = run_of(workspace, "pretrain-hybrid__2d")
    assert [(s["status"], s["steps_done"]) for s in record["stages"]] == [("finished", 4)]
    unlabelled = {path.name[:-9] for path in (workspace / "raw" / FIRST / "imagesUn").iterdir()}
    assert len(unlabelled) == 2
    assert unlabelled < set(record["train_cases"])
    assert (len(record["train_cases"]), record["val_cases"]) == (4 + 2, [])
    assert "lambda x SNR there 0.9999" in hybrid
    lines = [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line["terms"]) == {"image", "mask"} for line in lines)
    assert (fold / "samples.png").is_file()


def test_a_label_budget_hides_the_other_labels(workspace, hybrid):
    done("pretrain", "hybrid", 1, "--cases", 1, "--seed", 1, "--set", "steps=1", *WORK, "--workspace", workspace)
    _, all_labels, _ = run_of(workspace, "pretrain-hybrid__2d")
    _, record, _ = run_of(workspace, "pretrain-hybrid__2d__n1__seed1__training-steps-1")
    assert record["train_cases"] == all_labels["train_cases"]
    assert (len(record["hidden_labels"]), all_labels["hidden_labels"]) == (3, [])
    refused = msd("pretrain", "diffusion", 1, "--cases", 1, *WORK, "--workspace", workspace)
    assert (refused.code, "'pretrain-diffusion' sees no labels" in refused.stderr) == (2, True)


def test_supervised_pretraining_sees_labelled_images_only(workspace, supervised):
    fold, record, recipe = run_of(workspace, "pretrain-supervised__2d")
    assert len(record["train_cases"]) == 4
    labelled = {path.name.partition(".")[0] for path in (workspace / "raw" / FIRST / "labelsTr").iterdir()}
    assert set(record["train_cases"]) < labelled
    assert record["val_cases"] == []
    assert recipe["method_settings"]["schedule"]["name"] == "cosine"
    assert not (fold / "samples.png").exists()


def test_hybrid_is_fine_tuned_on_another_dataset_from_the_masks_rows(workspace, hybrid):
    start = workspace / "results" / FIRST / "pretrain-hybrid__2d"
    outcome = done("finetune", "hybrid", 2, "--from", start, "--cases", 2, "--json", *WORK, "--workspace", workspace)
    assert re.search(r"network\.out\.weight +adapted +3x\S+ +2x", outcome.stderr)
    assert "100.0% of the weights" in outcome.stderr
    fold, record, recipe = run_of(workspace, "hybrid__2d__n2__from-pretrain-hybrid-2d", SECOND)
    assert (len(record["train_cases"]), record["hidden_labels"]) == (2, [])
    assert record["parent"]["run"] == "pretrain-hybrid__2d/fold_0"
    _, _, theirs = run_of(workspace, "pretrain-hybrid__2d")
    for name in ("network", "model_channels", "channel_mult", "strides", "schedule"):
        assert recipe["method_settings"][name] == theirs["method_settings"][name]
    assert "foreground_mean" in outcome.json["validation"]
    assert (fold / "validation" / "summary.json").is_file()


def test_one_pretraining_serves_two_methods_and_a_label_budget_has_its_own(workspace, supervised):
    said = done("train", "transfer", 1, "--set", "trains=decoder", *WORK, "--workspace", workspace).stderr
    assert "the pretraining is finished and used again" in said
    done("train", "transfer", 1, "--cases", 2, *WORK, "--workspace", workspace)
    fold, first, _ = run_of(workspace, "pretrain-supervised__2d__n2")
    _, second, _ = run_of(workspace, "transfer__2d__n2")
    assert first["train_cases"] == second["train_cases"]
    assert second["parent"]["run"] == "pretrain-supervised__2d__n2/fold_0"
    frozen, (fold, _, _) = (
        load_file(fold.parents[1] / "pretrain-supervised__2d" / "fold_0" / LAST),
        run_of(workspace, "transfer__2d__trains-decoder"),
    )
    tuned = load_file(fold / LAST)
    same = {name for name, tensor in tuned.items() if np.array_equal(tensor, frozen[name])}
    assert {name for name in tuned if name.startswith(("model.network.down", "model.network.middle"))} <= same
    assert not {name for name in same if name.startswith("model.network.out.")}


def test_labels_that_the_start_has_seen_are_warned_of(workspace, supervised):
    start = workspace / "results" / FIRST / "pretrain-supervised__2d"
    words = ["finetune", "transfer", 1, "--from", start, "--dry-run", *WORK, "--workspace", workspace]
    # The fold's own training labels are no secret; with a budget all others are, and in another fold its validation's.
    assert "was trained with the labels" not in done(*words).stderr
    assert "was trained with the labels of 3 other training cases" in done(*words, "--cases", 1).stderr
    assert "was trained with the labels of 1 validation cases" in done(*words, "--fold", 1).stderr


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["hybrid", "supervised"])
def test_pixel_classifiers_start_from_pretrainings_with_labels(workspace, hybrid, supervised, objective):
    start = workspace / "results" / FIRST / f"pretrain-{objective}__2d"
    done("finetune", "ledm", 2, "--from", start, "--cases", 2, *WORK, "--workspace", workspace)
    _, record, recipe = run_of(workspace, f"ledm__2d__n2__from-pretrain-{objective}-2d", SECOND)
    assert record["stages"][0]["status"] == "finished"
    assert recipe["method_settings"]["distance"] == "l2"


def test_vanilla_trains_from_scratch_and_takes_no_other_network_than_its_start(workspace, hybrid):
    done("train", "vanilla", 2, "--set", "network=adm", *WORK, "--workspace", workspace)
    _, record, recipe = run_of(workspace, "vanilla__2d__network-adm", SECOND)
    assert (record["parent"], recipe["method_settings"]["network"]) == ({}, "adm")
    start = workspace / "results" / FIRST / "pretrain-hybrid__2d"
    words = ["finetune", "vanilla", 2, "--from", start, "--set", "network=adm", *WORK, "--workspace", workspace]
    refused = msd(*words)
    assert (refused.code, "network: settled by the run that training starts from" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_volumes_with_few_labels_are_pretrained_and_fine_tuned_and_a_stop_changes_nothing(tmp_path):
    source, place = write_oblique_source(tmp_path / "source", n=4, labelled=3), tmp_path / "workspace"
    flags = "--dataset 1 --name Phantom --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule"
    done("convert", "folder", source, *flags.split(), *WORK, "--workspace", place)
    done("plan", 1, "--scale", "tiny", *WORK, "--workspace", place)
    words = ["train", "hybrid", 1, "--config", "3d", "--cases", 1, *WORK, "--workspace", place]
    short = ["--set", "steps=2", "--set", "pretrain.steps=2"]
    whole = done(*words, *short, "--json").json
    assert whole["validation"]["foreground_mean"] is not None
    parts = [*words, *short, "--name", "parts"]
    assert msd(*parts, "--max-time", "0.001s").code == 7
    assert msd(*parts).code == 0
    first, second = (
        load_file(Path(run) / LAST)
        for run in (whole["run"], Path(whole["run"]).parents[1].glob("hybrid*parts/fold_0").__next__())
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    record = json.loads(
        (place / "results/Dataset001_Phantom/pretrain-hybrid__3d__n1__training-steps-2/fold_0/run.json").read_text()
    )
    assert len(record["train_cases"]) - len(record["hidden_labels"]) == 1 + 1, "one label, and an image that has none"
