"""The tutorial works: its commands, word by word and in order, on phantoms and with a scale of a few steps."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msd_shell import done

from medsegdiff_cli.planning import scales
from medsegdiff_cli.workflows import plan, run_setup
from medsegdiff_cli.workflows.phantoms import ChestCohort, write_chests

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "few-labels.md"
HAVE_WORKERS = {"convert", "check", "plan", "pretrain", "train", "predict", "evaluate"}
COHORT = ChestCohort(train={"A": 8}, unlabelled={"A": 3, "B": 3}, test={"B": 2}, shape=(48, 48))


def tutorial() -> list[list[str]]:
    """Return the words of every command in the page's code blocks, continued lines joined."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("msd ")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the scale `tiny` a few steps of a small network; a run's name does not change with it."""
    table = replace(scales.SCALES["tiny", 2], model_channels=8, channel_mult=(1, 2), steps=8)
    monkeypatch.setitem(scales.SCALES, ("tiny", 2), table)
    # Memory is measured elsewhere; here every patch fits.
    for module in (plan, run_setup):
        monkeypatch.setattr(module, "measure_training", lambda *_: 1000)
    return


@pytest.mark.usefixtures("quick")
def test_every_command_of_the_tutorial_works_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_chests(tmp_path / "radiographs", COHORT)
    said = {}
    for words in tutorial():
        # The plan's scale is the default of all trainings: `tiny` here, what suits the machine in the page.
        more = ["--scale", "tiny"] if words[0] == "plan" else []
        more += ["--workers", "0"] if words[0] in HAVE_WORKERS else []
        said[" ".join(words)] = done(*words, *more)
    assert "Which method: `msd train supervised Dataset031_Chest` first" in said["plan 31"].stderr
    results = tmp_path / "msd_workspace" / "results" / "Dataset031_Chest"
    assert {run.name for run in results.iterdir()} == {
        "pretrain-diffusion__2d",
        "tedm__2d__n6",
        "supervised__2d__n6__network-tedm",
    }
    # The pictures and files that the page speaks of.
    for name in ("pretrain-diffusion__2d/fold_0/samples.png", "tedm__2d__n6/fold_0/metrics.jsonl"):
        assert (results / name).is_file(), name
    for name in ("chest.png", "tedm_B.png", "tedm_B/volumes.csv", "supervised_B/scores.csv"):
        assert (tmp_path / name).is_file(), name
    assert "member_agreement" in (tmp_path / "tedm_B" / "volumes.csv").read_text().splitlines()[0]
    assert {path.name for path in (tmp_path / "tedm_B" / "uncertainty").iterdir()} >= {"B_test-0000_variance.nii.gz"}


def test_the_page_has_every_step_once_from_conversion_to_comparison() -> None:
    verbs = list(dict.fromkeys(words[0] for words in tutorial()))
    assert verbs == [
        "convert",
        "check",
        "preview",
        "plan",
        "pretrain",
        "train",
        "runs",
        "predict",
        "evaluate",
        "compare",
    ]
