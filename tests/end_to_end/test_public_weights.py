"""DeepLabv3 through the command line: random only when asked for, weights from a file, from a run; papers' images."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from msd_shell import done, msd
from safetensors.torch import save_file

from medsegdiff_cli.artifacts.checkpoint import read_checkpoint
from medsegdiff_cli.networks.resnet import ResNet
from medsegdiff_cli.workflows.phantoms import ChestCohort, write_chests

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deeplabv3")]

SMALL = "--workers 0 --set width=4 --set blocks=[1,1,1,1] --set steps=2 --set validate_every_steps=0".split()


@pytest.fixture(scope="module")
def workspace(quick_machine, tmp_path_factory) -> Path:
    """Two datasets of chests; the second is planned as the X-rays of Sauvalle & Salzmann."""
    root = tmp_path_factory.mktemp("deeplab")
    flags = ["--images", "**/*.png", "--labels", "**/labels/*.png", "--label-map", "1:lung", "--test-count", 1]
    for number, name in ((1, "Chest"), (2, "Other")):
        cohort = ChestCohort(train={"A": 5}, shape=(32, 40), seed=number)
        source = write_chests(root / f"source{number}", cohort)
        into = ["--workspace", root / "workspace", "--workers", 0]
        done("convert", "folder", source, "--dataset", number, "--name", name, *flags, *into)
        paper = "--equalise-gamma 0.5 --normalisation rescale_minus1_1 --geometry resize --size 32 --grey-to-rgb"
        done("plan", number, "--scale", "tiny", *(paper.split() if number == 2 else ()), *into)
    return root / "workspace"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of a small ResNet of colour images, as a library would publish it."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file({**ResNet(3, 4, (1, 1, 1, 1)).state_dict(), "fc.weight": torch.ones(10, 128)}, path)
    return path


@pytest.fixture(scope="module")
def from_file(workspace, weights):
    """What a training from the file said; and its fold."""
    said = train(workspace, 1, "--set", f"weights={weights}").stderr
    (run,) = (workspace / "results" / "Dataset001_Chest").glob("deeplabv3__2d__*resnet*")
    return said, run / "fold_0"


def train(workspace, number, *more):
    return done("train", "deeplabv3", number, *SMALL, *more, "--workspace", workspace)


def test_without_weights_nothing_is_trained(workspace):
    refused = msd("train", "deeplabv3", 1, *SMALL, "--workspace", workspace)
    assert refused.code == 2
    assert "no initial weights" in refused.stderr
    assert "weights=random" in refused.stderr
    assert "resnet50-0676ba61" in refused.stderr
    runs = [path.name for path in (workspace / "results" / "Dataset001_Chest").glob("deeplabv3*")]
    assert all("weights-" in name for name in runs)


def test_a_training_from_a_file_says_and_records_where_its_weights_come_from(from_file, weights):
    said, fold = from_file
    assert "tensors of resnet.safetensors" in said
    assert "conv1.weight for other channels" in said
    settings = yaml.safe_load((fold / "recipe.yaml").read_text())["method_settings"]
    assert settings["weights"] == "resnet.safetensors"
    assert len(settings["weights_sha256"]) == 64
    assert str(weights.parent) not in (fold / "recipe.yaml").read_text() + fold.parent.name
    state = read_checkpoint(fold / "checkpoints" / "last").part("model")
    assert state["network.backbone.conv1.weight"].shape == (4, 1, 7, 7)


def test_predicting_needs_no_file_and_a_finished_training_is_not_begun_anew(workspace, from_file, weights, tmp_path):
    _, fold = from_file
    again = train(workspace, 1, "--set", f"weights={weights}").stderr
    assert "tensors of resnet.safetensors" not in again
    moved = weights.rename(weights.with_name("elsewhere.safetensors"))
    try:
        images = workspace / "raw" / "Dataset001_Chest" / "imagesTs"
        done("predict", fold, images, tmp_path / "out", "--workers", 0)
    finally:
        moved.rename(weights)
    assert len([path for path in (tmp_path / "out").iterdir() if path.suffix == ".png"]) == 1


def test_another_file_of_the_same_name_is_another_training(workspace, from_file, weights, tmp_path):
    other = tmp_path / weights.name
    other.write_bytes(weights.read_bytes())
    assert train(workspace, 1, "--set", f"weights={other}"), "the same content, wherever it lies"
    save_file({**ResNet(3, 4, (1, 1, 1, 1)).state_dict()}, other)
    refused = msd("train", "deeplabv3", 1, *SMALL, "--set", f"weights={other}", "--workspace", workspace)
    assert refused.code == 2
    assert "weights_sha256" in refused.stderr


def test_a_run_on_one_dataset_starts_that_on_another_with_the_papers_images(workspace, from_file, tmp_path):
    _, fold = from_file
    both = msd("finetune", "deeplabv3", 2, "--from", fold, *SMALL, "--set", "weights=random", "--workspace", workspace)
    assert both.code == 2
    assert "cannot start from a run and" in both.stderr
    said = done("finetune", "deeplabv3", 2, "--from", fold, *SMALL, "--workspace", workspace).stderr
    assert "initial weights: 100.0 %" in said
    (run,) = (workspace / "results" / "Dataset002_Other").glob("deeplabv3__2d__from-*")
    record = json.loads((run / "fold_0" / "run.json").read_text())
    assert "deeplabv3__2d" in record["parent"]["run"]
    plan = yaml.safe_load((run / "fold_0" / "plan.yaml").read_text())
    assert (plan["channel_copies"], plan["channels"][0]["statistics"]) == (3, {"equalise_gamma": 0.5})
    state = read_checkpoint(run / "fold_0" / "checkpoints" / "last").part("model")
    assert state["network.backbone.conv1.weight"].shape == (4, 3, 7, 7)
    images = workspace / "raw" / "Dataset002_Other" / "imagesTs"
    done("predict", run, images, tmp_path / "out", "--workers", 0)
    assert len([path for path in (tmp_path / "out").iterdir() if path.suffix == ".png"]) == 1


def test_random_weights_are_there_for_the_asking(workspace):
    train(workspace, 1, "--set", "weights=random")
    assert list((workspace / "results" / "Dataset001_Chest").glob("deeplabv3__2d__*__weights-random__*"))


def test_segformer_trained_on_one_dataset_starts_runs_on_another_that_are_averaged(workspace):
    small = "--workers 0 --set width=8 --set blocks=[1,1,1,1] --set head_width=8 --set validate_every_epochs=1".split()
    small += ["--set", "validation_metric=iou", "--set", "patience=20", "--workspace", workspace]
    refused = msd("train", "segformer", 1, *small)
    assert refused.code == 2
    assert "nvidia/mit-b3" in refused.stderr
    first = done("train", "segformer", 1, *small, "--set", "steps=2", "--set", "weights=random", "--json").json["run"]
    more = ("--from", first, *small, "--set", "steps=3", "--set", "layer_decay=0.5", "--runs", 2, "--selection", "best")
    said = done("train", "segformer", 2, *more, "--json")
    assert "patch_embeddings.0.proj.weight  adapted  8x1x7x7  8x3x7x7" in said.stderr
    assert "10 learning rates" in said.stderr
    runs = said.json["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert "__seed1__from-segformer" in runs[1]["run"]
    # An epoch of 4 training images in batches of 2 or more is 2 steps at most: the last step is validated, too.
    settings = yaml.safe_load((Path(runs[0]["run"]) / "recipe.yaml").read_text())
    training, batch = settings["training"], settings["batch_size"]
    cases = len(json.loads((Path(runs[0]["run"]) / "run.json").read_text())["train_cases"])
    assert (training["validate_every_steps"], training["validate_every_epochs"]) == (-(-cases // batch), None)
    jaccard = [run["validation"]["aggregations"]["overall"]["named"]["jaccard_per_image"] for run in runs]
    assert said.json["statistics"]["jaccard_per_image"]["mean"] == pytest.approx(sum(jaccard) / 2)
    again = done("finetune", "segformer", 2, *more)
    assert "Jaccard index per image" in again.stdout
    assert "10 learning rates" not in again.stderr, "finished runs are used again"
    other = msd("train", "tedm", 1, "--set", "layer_decay=0.5", "--scale", "tiny", "--workspace", workspace)
    assert other.code == 2
    assert "no network whose layers have an order" in other.stderr
