"""`msd demo`: the whole chain on phantoms."""

import json
import shlex

import numpy as np
import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.reading import read_image
from medsegdiff_cli.workflows.demo import DemoSettings, run_demo

CHAIN = ["convert", "check", "plan", "pretrain", "train", "train", *["predict", "evaluate"] * 4]
ENTRIES = [(f"scanner {s}", m) for s in "AB" for m in ("tedm", "supervised")]


def test_every_verb_is_run_in_order_and_announced_by_its_command(tiny_demo):
    report, said = tiny_demo
    assert said[0] == f"$ cd {report.folder}; export MSD_WORKSPACE=workspace"
    assert [text.split()[2] for text in said if text.startswith("$ msd ")] == CHAIN
    assert [command.split()[0] for command in report.results.commands] == CHAIN
    assert len(report.results.seconds) == len(CHAIN)


def test_announced_paths_and_models_are_there(tiny_demo):
    report, _ = tiny_demo
    for command in report.results.commands:
        verb, *words = shlex.split(command)
        if verb == "predict":
            model, images, output = words[:3]
            assert list((report.folder / "workspace" / "results").glob(f"*/{model}/fold_all/run.json"))
            assert sorted(p.stem for p in (report.folder / images).iterdir()) == sorted(
                p.stem for p in (report.folder / output).glob("*.png")
            )
            assert list((report.folder / output / "uncertainty").glob("*_entropy*"))


def test_both_methods_learn_from_the_same_labels_and_no_test_image(tiny_demo):
    report, _ = tiny_demo
    runs = [json.loads(p.read_text()) for p in (report.folder / "workspace" / "results").rglob("run.json")]
    seen = {run["method"]: run["train_cases"] for run in runs}
    labelled = ["A_train-0000", "A_train-0001"]
    assert seen["tedm"] == seen["supervised"] == labelled
    without = [f"{s}_unlabelled-000{number}" for s in "AB" for number in range(2)]
    assert sorted(seen["pretrain-diffusion"]) == sorted([*labelled, *without])
    assert len(runs) == 3


def test_scores_are_those_that_evaluate_wrote(tiny_demo):
    report, _ = tiny_demo
    assert [(row.domain, row.method) for row in report.results.rows()] == ENTRIES
    for entry, row in zip(report.results.scores, report.results.rows(), strict=True):
        summary = json.loads((entry.predictions / "summary.json").read_text())
        assert row.n == 2
        assert row.mean == pytest.approx(summary["foreground_mean"]["Dice"])
        assert row.interval == pytest.approx((np.min(entry.dice), np.max(entry.dice)))
    content = json.loads(json.dumps(report.to_json()))
    assert [(row["domain"], row["method"]) for row in content["scores"]] == ENTRIES
    assert len(content["differences"]) == 2


def test_the_page_and_the_picture_of_the_pretraining_are_there(tiny_demo):
    report, _ = tiny_demo
    html = report.page.read_text(encoding="utf-8")
    # Two cases in each domain (best and worst), and the generated images.
    assert html.count("data:image/png;base64,") == 5
    assert min(read_image(report.samples).geometry.shape) > 16


def test_the_same_call_again_keeps_the_training_and_gives_the_same_scores(tiny_demo, tiny_settings):
    report, _ = tiny_demo
    weights = sorted((report.folder / "workspace" / "results").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in weights}
    again = run_demo(report.folder, seed=1, say=lambda _: None, settings=tiny_settings)
    assert [row.to_json() for row in again.results.rows()] == [row.to_json() for row in report.results.rows()]
    assert weights
    assert {path: path.stat().st_mtime_ns for path in weights} == before
    assert "times are of the last call" in again.page.read_text(encoding="utf-8")


def test_folders_of_others_are_left_alone(tmp_path, tiny_demo, tiny_settings):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        run_demo(tmp_path)
    with pytest.raises(UsageError, match="another seed"):
        run_demo(tiny_demo[0].folder, seed=2, settings=tiny_settings)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_both_methods_find_lungs_on_the_scanner_of_the_labels(tmp_path):
    report = run_demo(tmp_path / "demo", say=lambda _: None)
    means = {(row.domain, row.method): row.mean for row in report.results.rows()}
    # A mask of the mean lung reaches about 0.8 on these phantoms.
    assert min(means["scanner A", "tedm"], means["scanner A", "supervised"]) > 0.85
    assert [row.n for row in report.results.rows()] == [DemoSettings().test] * 4
