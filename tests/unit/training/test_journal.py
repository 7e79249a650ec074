"""The journal survives crashes, and its picture shows what it holds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from toy_training import settings, toy, train

from medsegdiff_cli.training.journal import Journal, steps_per_line


def line(stage: str, step: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": 1.0, "terms": {"dice": 0.4, "ce": 0.6}, "lr": 0.1, **more}


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (300, 1), (2000, 10), (50_000, 100), (1_000_000, 100)])
def test_a_stage_has_about_200_lines_and_one_in_100_steps_at_least(steps: int, expected: int) -> None:
    assert steps_per_line(steps) == expected


def test_rewinding_drops_later_lines_of_the_stage_only_and_a_line_cut_short(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for stage, step in (("one", 5), ("one", 10), ("two", 5), ("two", 10)):
        journal.write(line(stage, step))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "two", "st')
    journal.rewind("two", 5)
    kept = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(item["stage"], item["step"]) for item in kept] == [("one", 5), ("one", 10), ("two", 5)]


def test_rewinding_without_a_journal_writes_none(tmp_path: Path) -> None:
    Journal(tmp_path).rewind("one", 0)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    Journal(tmp_path).write(line("one", 1, validation={"score": math.nan, "cases": 1, "details": {"a": math.inf}}))
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text)["validation"] == {"score": None, "cases": 1, "details": {"a": None}}


def test_the_picture_of_a_training_is_drawn_at_its_end(tmp_path: Path) -> None:
    train(toy(), tmp_path, settings(4, validate_every_steps=2))
    picture = imread(tmp_path / "progress.png")
    assert picture.shape == (800, 900, 4)
    # Not blank: the loss is drawn near black, the validation score in green (Okabe & Ito's #009e73).
    assert (np.abs(picture[..., :3] - np.array([0x22, 0x22, 0x22]) / 255).max(-1) < 0.02).sum() > 50
    assert (np.abs(picture[..., :3] - np.array([0, 0x9E, 0x73]) / 255).max(-1) < 0.02).sum() > 50


def frames(picture: np.ndarray) -> int:
    """Return how many panels stand below each other: lines of black that are most of the picture's width, two each."""
    black = (picture[..., :3].max(-1) < 0.1).mean(1) > 0.6
    return int((np.diff(black.astype(int)) == 1).sum()) // 2


def test_a_training_that_validates_nothing_has_no_panel_for_it(tmp_path: Path) -> None:
    panels = []
    for name, more in (("without", {}), ("with", {"validation": {"score": 0.5, "cases": 1, "details": {}}})):
        (tmp_path / name).mkdir()
        journal = Journal(tmp_path / name)
        for step in (1, 2):
            journal.write(line("one", step, **more))
        journal.draw()
        panels.append(frames(imread(tmp_path / name / "progress.png")))
    assert panels == [2, 3]


def test_a_picture_of_two_stages_without_scores_can_be_drawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for item in (
        line("one", 5),
        line("one", 10, validation={"score": None, "cases": 1}),
        line("two", 5, terms={"a": 1.0}),
    ):
        journal.write(item)
    journal.draw()
    assert (tmp_path / "progress.png").stat().st_size > 1000
