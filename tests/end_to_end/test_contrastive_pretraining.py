"""Contrastive pretrainings through the command line: two stages, both resumed, and what starts from them; 2D and 3D."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msd_shell import done, msd, write_oblique_source
from safetensors.numpy import load_file

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.planning import scales
from medsegdiff_cli.workflows.memory_forecast import measure_training

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("contrastive")]

LAST = "checkpoints/last.safetensors"
DATASET = "Dataset001_Phantom"


@pytest.fixture(scope="module", autouse=True)
def few_steps(quick_machine):
    """Make the scale `tiny` two steps of a small network."""
    with pytest.MonkeyPatch.context() as patch:
        for n_dims in (2, 3):
            small = {"model_channels": 8, "channel_mult": (1, 2), "steps": 2, "max_patch_voxels": 16**n_dims}
            patch.setitem(scales.SCALES, ("tiny", n_dims), replace(scales.SCALES["tiny", n_dims], **small))
        yield


@pytest.fixture(scope="module")
def workspace(few_steps, tmp_path_factory) -> Path:
    """A planned dataset of volumes: five labelled, one unlabelled."""
    root = tmp_path_factory.mktemp("contrast")
    source = write_oblique_source(root / "source", n=6, labelled=5)
    flags = "--dataset 1 --name Phantom --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule"
    into = ["--workers", 0, "--workspace", root / "workspace"]
    done("convert", "folder", source, *flags.split(), *into)
    done("plan", 1, "--scale", "tiny", *into)
    return root / "workspace"


def fold_of(workspace: Path, name: str) -> Path:
    return workspace / "results" / DATASET / name / "fold_0"


@pytest.mark.parametrize("config", ["2d", "3d"])
def test_one_pretraining_of_two_stages_serves_its_method_vanilla_and_pixel_classifiers(workspace, config):
    into = ["--config", config, "--workers", 0, "--workspace", workspace]
    said = done("train", "global-local-cl", 1, "--dry-run", *into)
    forecast = said.stdout + said.stderr
    assert "4 (global), 4 (local)" in forecast
    assert "16 of " in forecast, "two views of a patch pass the network in each of the two stages"
    broken_off = ["--set", "pretrain.checkpoint_minutes=1e-9", *into]
    done("train", "global-local-cl", 1, "--cases", 2, *broken_off)
    (run,) = (workspace / "results" / DATASET).glob(f"pretrain-global-local-cl__{config}*")
    record = json.loads((run / "fold_0" / "run.json").read_text())
    stages = [(s["name"], s["status"], s["steps_done"]) for s in record["stages"]]
    assert stages == [("global", "finished", 4), ("local", "finished", 4)]
    assert (len(record["train_cases"]), record["val_cases"]) == (4 + 1, [])
    lines = [json.loads(line) for line in (run / "fold_0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["global"] * 4 + ["local"] * 4
    assert not (run / "fold_0" / "samples.png").exists()
    for method in ("vanilla", "tedm"):
        said = done("finetune", method, 1, "--from", run, "--cases", 2, *into).stderr
        assert "100.0% of the weights" in said or "new" in said
        assert "global_head" in said, "what is left behind is named"
    theirs, mine = (
        load_file(run / "fold_0" / LAST),
        load_file(next((run.parent).glob(f"tedm__{config}*/fold_0/{LAST}"))),
    )
    frozen = [name for name in mine if name.startswith("model.network.") and ".out." not in name]
    assert frozen
    assert all((mine[name] == theirs[name]).all() for name in frozen)


def test_stopped_in_either_stage_it_goes_on_to_the_same_weights(workspace):
    into = ["--config", "2d", "--workers", 0, "--workspace", workspace]
    done("pretrain", "global-local-cl", 1, "--name", "whole", *into)
    for _ in range(12):  # a step each, of both stages
        outcome = msd("pretrain", "global-local-cl", 1, "--name", "parts", "--max-time", "0.001s", *into)
        if outcome.code != 7:
            break
    assert outcome.code == 0, outcome.stderr
    whole, parts = (
        load_file(next((workspace / "results" / DATASET).glob(f"*__{name}/fold_0/{LAST}")))
        for name in ("whole", "parts")
    )
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_the_memory_of_several_stages_is_that_of_the_largest():
    task = Task(n_dims=2, in_channels=1, class_names=("background", "organ"))
    settings = {"network": "tedm", "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1}
    settings["attention_levels"] = []

    def forecast(name: str, **changes: object) -> int:
        model = find_trainable(name).load().Settings
        chosen = validate(model, {**settings, **changes}, "settings").model_dump(mode="json")
        return measure_training(name, task, chosen, (32, 32), 4, torch.device("cpu"))

    whole, both = (forecast(f"pretrain-{name}", projected_features=4) for name in ("global-cl", "global-local-cl"))
    assert whole <= both < 1.2 * whole, "the local stage keeps less, of a frozen encoder; its head is all that is more"
    assert forecast("pretrain-global-local-cl", projected_features=256) > 2 * both, "but for a head as wide as this"
