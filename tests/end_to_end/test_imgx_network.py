"""`--set network=imgx` through the real command line: trained, stopped and gone on with, in 2D and 3D."""

import json
import re
from pathlib import Path

import pytest
import yaml
from msd_shell import done, msd, write_oblique_source
from safetensors.numpy import load_file

from medsegdiff_cli.workflows import forecast
from medsegdiff_cli.workflows.step_timing import Timing

QUICK = "--scale tiny --workers 0 --set network=imgx --set steps=2 --set channel_mult=[1,2] --set warmup_steps=0"
NEVER = "--set validate_every_steps=0"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Three labelled cases on oblique, anisotropic grids, planned."""
    folder = tmp_path_factory.mktemp("imgx")
    source, place = write_oblique_source(folder / "source", n=3, labelled=3), folder / "workspace"
    flags = "--dataset 1 --name Phantom --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule"
    done("convert", "folder", source, *flags.split(), "--workers", 0, "--workspace", place)
    done("plan", 1, "--workspace", place, "--scale", "tiny", "--workers", 0)
    return place


def train(workspace, config, *words):
    flags = [*QUICK.split(), *NEVER.split(), "--config", config, "--workspace", workspace]
    return msd("train", "supervised", 1, *flags, *words)


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run / "checkpoints" / "last.safetensors").items()}


@pytest.mark.parametrize("config", [pytest.param("2d", marks=pytest.mark.slow), "3d"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(workspace, config):
    whole = train(workspace, config, "--name", "whole", "--json")
    assert whole.code == 0, whole.stderr
    assert train(workspace, config, "--name", "parts", "--max-time", "0.001s").code == 7
    assert "goes on at step 1" in train(workspace, config, "--name", "parts").stderr
    run = Path(whole.json["run"])
    (other,) = run.parents[1].glob(f"*{config}*__parts/fold_0")
    assert weights(run) == weights(other)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())["method_settings"]
    assert (recipe["network"], recipe["channel_mult"], recipe["dropout"]) == ("imgx", [1, 2], 0.1)
    assert json.loads((run / "validation" / "summary.json").read_text())["foreground_mean"]


def test_at_full_scale_it_is_the_papers_network_and_its_step_is_timed(workspace, monkeypatch):
    timed = []
    real = forecast.time_training_step

    def remember(*arguments) -> Timing:
        timed.append(real(*arguments))
        return timed[-1]

    monkeypatch.setattr(forecast, "time_training_step", remember)
    flags = ["--scale", "full", "--set", "network=imgx", "--set", "patch_size_voxels=[8,8]", "--set", "batch_size=2"]
    said = done("train", "supervised", 1, "--config", "2d", *flags, "--dry-run", "--workspace", workspace).stderr
    # 11.6 with strides of 2 only; the plan of these small images has 1s.
    assert re.search(r"parameters: 11\.[456]\d million", said), said
    assert "memory: about " in said
    assert 0 < timed[0].seconds < 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set network=imgx --set attention_levels=[0]", "one transformer block, at its coarsest level"),
        ("--set time_injection=cancelled", "time_injection 'cancelled' is of network 'imgx', not of 'adm'"),
        ("--set network=imgx --set time_injection=before", "'after-norm' or 'cancelled'"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(workspace, words, message):
    outcome = msd("train", "supervised", 1, "--workspace", workspace, "--scale", "tiny", *words.split(), "--dry-run")
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())
