"""`msd demo`: the whole chain on phantoms."""

import json

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.reading import read_image
from medsegdiff_cli.workflows.demo import run_demo

VERBS = ["convert", "check", "plan", "train", "predict", "evaluate", "preview"]


def test_every_verb_is_run_in_order_and_announced_by_its_command(tiny_demo):
    report, said = tiny_demo
    commands = [text.split()[2] for text in said if text.startswith("$ msd ")]
    assert commands == VERBS
    assert list(report.seconds) == VERBS


def test_test_cases_are_scored_and_drawn(tiny_demo):
    report, _ = tiny_demo
    assert len(report.scores.cases) == 2
    assert list(report.scores.classes) == ["organ", "nodule"]
    assert not report.scores.failures
    assert min(read_image(report.picture).geometry.shape) > 100
    content = json.loads(json.dumps(report.to_json()))
    assert content["scores"]["schema_version"] == 1
    assert content["picture"] == str(report.folder / "overlay.png")


def test_the_same_call_again_keeps_the_training_and_gives_the_same_scores(tiny_demo, tiny_settings):
    report, _ = tiny_demo
    runs = sorted((report.folder / "workspace" / "results").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in runs}
    again = run_demo(report.folder, seed=1, say=lambda _: None, settings=tiny_settings)
    assert again.scores.cases == report.scores.cases
    assert runs
    assert {path: path.stat().st_mtime_ns for path in runs} == before


def test_folders_of_others_are_left_alone(tmp_path, tiny_demo, tiny_settings):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        run_demo(tmp_path)
    with pytest.raises(UsageError, match="another seed"):
        run_demo(tiny_demo[0].folder, seed=2, settings=tiny_settings)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_full_demo_learns_both_organs(tmp_path):
    report = run_demo(tmp_path / "demo", say=lambda _: None)
    dice = {name: report.scores.overall.per_class[name]["dice"].mean for name in report.scores.classes}
    assert dice["organ"] > 0.85
    assert dice["nodule"] > 0.75
