"""The demonstration's page, from a dataset and prediction folders that are made here."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, write_prediction_info
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.workflows.demo_page import DemoResults, DemoScores, write_demo_page

CASES = ("a", "b", "c", "d", "e")
GRID = Geometry.plain((5, 16, 14))


def box(shift: int = 0) -> np.ndarray:
    label = np.zeros((1, *GRID.shape), np.uint8)
    label[0, 1:4, 4 + shift : 12, 3:10] = 1
    return label


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "Dataset001_Boxes"
    for number, case in enumerate(CASES):
        array = np.random.default_rng(number).normal(size=(1, *GRID.shape)).astype(np.float32)
        write_image(root / "imagesTs" / f"{case}_0000.nii.gz", Image(array=array + box(), geometry=GRID))
        write_label(root / "labelsTs" / f"{case}.nii.gz", box(), GRID)
    info = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "numTraining": 0}
    (root / "dataset.json").write_text(json.dumps({**info, "file_ending": ".nii.gz"}))
    return root


def predictions(folder, dataset, *, entropy: bool = False):
    for case in CASES:
        write_label(folder / f"{case}.nii.gz", box(1), GRID)
        if entropy:
            unsure = np.full((1, *GRID.shape), 0.3, np.float32)
            write_image(folder / "uncertainty" / f"{case}_entropy.nii.gz", Image(array=unsure, geometry=GRID))
    known = {"file_ending": ".nii.gz", "classes": {"organ": (1,)}, "models": ("m",), "model_digests": ("0",)}
    made = {"method": "m", "config": "3d", "msd_version": "0", "command": "", "seed": 0, "train_cases": 1}
    write_prediction_info(folder, PredictionInfo(dataset="d", dataset_path=str(dataset), **known, **made))
    return folder


@pytest.fixture
def results(tmp_path, dataset):
    first = predictions(tmp_path / "supervised", dataset)
    second = predictions(tmp_path / "tedm", dataset, entropy=True)
    dice = np.array([0.5, 0.9, 0.7, np.nan, 0.6])
    same = [
        DemoScores(domain="same <scanner>", method="supervised", cases=CASES, dice=dice - 0.1, predictions=first),
        DemoScores(domain="same <scanner>", method="tedm", cases=CASES, dice=dice, predictions=second),
    ]
    other = DemoScores(domain="other", method="tedm", cases=("c",), dice=np.array([0.25]), predictions=second)
    return DemoResults(
        scores=(*same, other),
        references={"same <scanner>": dataset, "other": dataset},
        shown_method="tedm",
        what_was_done=("Two methods learned from one case.",),
        seconds={"train": 100.0, "predict": 25.0},
        seed=3,
        commands=("plan 1",),
    )


class Cells(HTMLParser):
    """Collects the text of table cells and captions of figures, and the pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells, self.captions, self.pictures, self.inside = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("td", "th"):
            self.cells.append(data)
        if self.inside == "figcaption":
            self.captions.append(data)


def page_of(results, tmp_path) -> Cells:
    return Cells(write_demo_page(results, tmp_path / "demo.html").read_text(encoding="utf-8"))


def test_the_table_has_means_intervals_and_numbers_of_cases(results, tmp_path) -> None:
    cells = page_of(results, tmp_path).cells

    assert cells[:4] == ["domain", "supervised", "tedm", "same <scanner>"]
    # (0.5 + 0.9 + 0.7 + 0.6) / 4; case d has no Dice.
    assert cells[5].startswith("0.675 [0.")
    assert cells[5].endswith("n 4 (1 undefined)")
    assert cells[4].startswith("0.575 [")
    # One case has no interval; a method that was not run is said to be so.
    assert cells[6:9] == ["other", "not run", "0.250, n 1"]
    assert cells[-4:] == ["step", "command", "1", "msd plan 1"]
    assert "2 min 5 s" in cells


def test_the_worst_the_median_and_the_best_case_are_drawn(results, tmp_path) -> None:
    page = page_of(results, tmp_path)

    assert page.captions == [
        "Worst case, a: Dice supervised 0.400 and tedm 0.500",
        "Median case, e: Dice supervised 0.500 and tedm 0.600",
        "Best case, b: Dice supervised 0.800 and tedm 0.900",
        "Only case, c: Dice tedm 0.250",
    ]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in page.pictures)
    assert page.pictures[0]["alt"].startswith("image, reference, predictions and entropy of a, the worst case")


def test_without_entropy_none_is_spoken_of(results, tmp_path) -> None:
    alts = [p["alt"] for p in page_of(replace(results, shown_method="supervised"), tmp_path).pictures]

    assert len(alts) == 3
    assert not any("entropy" in alt for alt in alts)


def test_the_page_says_that_it_proves_nothing_about_patients(results, tmp_path) -> None:
    html = write_demo_page(results, tmp_path / "demo.html").read_text(encoding="utf-8")

    assert "phantoms" in html
    assert "nothing about patients" in html
    assert str(tmp_path) not in html


def test_the_same_results_give_the_same_page_whatever_the_order_of_cases(results, tmp_path) -> None:
    turned = [replace(e, cases=e.cases[::-1], dice=e.dice[::-1]) for e in results.scores]
    first = write_demo_page(results, tmp_path / "1.html").read_bytes()

    assert first == write_demo_page(replace(results, scores=tuple(turned)), tmp_path / "2.html").read_bytes()


def test_a_missing_prediction_is_said(results, tmp_path) -> None:
    (tmp_path / "tedm" / "b.nii.gz").unlink()
    with pytest.raises(InputDataError, match="'b' has no label map"):
        write_demo_page(results, tmp_path / "demo.html")


def test_scores_need_a_case_each(tmp_path) -> None:
    with pytest.raises(ValueError, match="2 cases"):
        DemoScores(domain="d", method="m", cases=("a", "b"), dice=np.zeros(3), predictions=tmp_path)
