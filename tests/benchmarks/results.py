"""Regenerate "Labels only" in docs/results.md: train, predict and score on real data through the command line.

    python tests/benchmarks/results.py --data FOLDER --workspace FOLDER [--only NAME ...]

FOLDER holds the public sets as published (Task04_Hippocampus, cxr_shenzhen, CHASEDB1, SunnybrookCardiac). Finished
trainings and predictions are reused, so an interrupted run goes on; nothing but docs/results.md is written outside of
the workspace.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from medsegdiff_cli.artifacts.scores import read_scores

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
TITLE = "## Labels only"


@dataclass(frozen=True)
class Dataset:
    """A public dataset and the words that convert it."""

    id: str
    name: str
    convert: tuple[str, ...]
    test_images: bool = True


@dataclass(frozen=True)
class Experiment:
    """A training and what it is scored on.

    Attributes:
        train: words after `msd train supervised ID`.
        run: name of the run's folder.
        observers: further observers of the test labels to score against.
    """

    name: str
    dataset: Dataset
    train: tuple[str, ...]
    run: str
    observers: tuple[str, ...] = field(default=())


HIPPOCAMPUS = Dataset(
    "4", "Hippocampus", ("decathlon", "Task04_Hippocampus", "--test-as-unlabelled"), test_images=False
)
LUNGS = Dataset(
    "11",
    "Lungs",
    ("folder", "cxr_shenzhen", "--images", "CXR_png/*.png", "--labels", "mask/*.png", "--label-suffix", "_mask")
    + ("--label-map", "255:lung", "--threshold", "127", "--test-count", "20", "--domain", "shenzhen"),
)
VESSELS = Dataset(
    "12",
    "Vessels",
    ("folder", "CHASEDB1", "--images", "*.jpg", "--labels", "*_1stHO.png", "--label-suffix", "_1stHO")
    + ("--extra-labels", "second=_2ndHO", "--label-map", "255:vessel", "--group", r"Image_(\d+)", "--test-count", "4"),
)
VENTRICLE = Dataset(
    "13",
    "LeftVentricle",
    ("folder", "SunnybrookCardiac", "--images", "Images/*/*.png", "--labels", "Labels/*/*.png")
    + ("--label-map", "255:ventricle", "--group", "(SC-.*)-IM", "--test-count", "30"),
)
EXPERIMENTS = (
    Experiment("hippocampus-3d", HIPPOCAMPUS, ("--config", "3d"), "supervised__3d"),
    Experiment("hippocampus-3d-6", HIPPOCAMPUS, ("--config", "3d", "--cases", "6"), "supervised__3d__n6"),
    Experiment("lungs", LUNGS, (), "supervised__2d"),
    Experiment("vessels", VESSELS, (), "supervised__2d", observers=("second",)),
    Experiment("ventricle", VENTRICLE, (), "supervised__2d"),
    Experiment("hippocampus-2d", HIPPOCAMPUS, ("--config", "2d"), "supervised__2d"),
)


def main() -> None:
    """Run the experiments asked for and write the page from every result that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[experiment.name for experiment in EXPERIMENTS])
    options = parser.parse_args()
    for experiment in EXPERIMENTS:
        if experiment.name in options.only:
            run(experiment, options.data, options.workspace)
        write_page(options.workspace)


def run(experiment: Experiment, data: Path, workspace: Path) -> None:
    """Convert, train, predict and score; what is there is kept."""
    dataset = experiment.dataset
    if not (folder_of(workspace / "raw", dataset)).is_dir():
        words = (*dataset.convert[:1], str(data / dataset.convert[1]), *dataset.convert[2:])
        msd(workspace, "convert", *words, "--dataset", dataset.id, "--name", dataset.name)
    msd(workspace, "train", "supervised", dataset.id, "--scale", "small", *experiment.train)
    if not dataset.test_images:
        return
    model = folder_of(workspace / "results", dataset) / experiment.run
    for observer in ("", *experiment.observers):
        output = predictions_of(workspace, experiment, observer)
        msd(workspace, "predict", str(model), str(folder_of(workspace / "raw", dataset) / "imagesTs"), str(output))
        msd(workspace, "evaluate", str(output), dataset.id, *(("--observer", observer) if observer else ()))


def msd(workspace: Path, *words: str) -> None:
    """Run one command of the tool, or stop with its exit code."""
    print("msd", *words, flush=True)
    environment = {**os.environ, "MSD_WORKSPACE": str(workspace)}
    done = subprocess.run([sys.executable, "-m", "medsegdiff_cli", *words], env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def write_page(workspace: Path) -> None:
    """Write the section from the summaries in the workspace."""
    rows = []
    for experiment in EXPERIMENTS:
        fold = folder_of(workspace / "results", experiment.dataset) / experiment.run / "fold_0"
        command = " ".join(["msd train supervised", experiment.dataset.id, "--scale small", *experiment.train])
        places = [("validation, fold 0", fold / "validation")]
        if experiment.dataset.test_images:
            places.append(("test", predictions_of(workspace, experiment, "")))
            places += [(f"test, {o} observer", predictions_of(workspace, experiment, o)) for o in experiment.observers]
        for scored_on, folder in places:
            if (folder / "summary.json").is_file() and (fold / "run.json").is_file():
                rows += _rows(experiment, scored_on, folder, json.loads((fold / "run.json").read_text()), command)
    replace_section(TITLE, _HEADER + "\n".join(rows) + "\n" + _FOOTER)


def _rows(experiment: Experiment, scored_on: str, folder: Path, run_record: dict, command: str) -> list[str]:
    summary = json.loads((folder / "summary.json").read_text())
    overall = summary["aggregations"]["overall"]
    unit = "/".join(summary["units"]["distance"])
    rows = []
    for name, metrics in overall["per_class"].items():
        dice, distance = metrics["dice"], metrics["hd95_max"]
        rows.append(
            f"| {experiment.dataset.name} | {run_record['config']} | {len(run_record['train_cases'])} | {scored_on} "
            f"| {name} | {dice['n']} | {run_record['seed']} | {dice['mean']:.3f} ± {dice['std'] or 0:.3f} "
            f"| {distance['mean']:.2f} {unit} | {overall['missed'][name]} | `{command}` |"
        )
    mean = overall["case_by_class"]["dice"]["mean"]
    if len(overall["per_class"]) > 1:
        rows.append(
            f"| {experiment.dataset.name} | {run_record['config']} | {len(run_record['train_cases'])} | {scored_on} "
            f"| **mean of classes** | {overall['n_cases']} | {run_record['seed']} | **{mean:.3f}** | | | |"
        )
    return rows


def replace_section(title: str, text: str) -> None:
    """Write one section of the page, in its place or at the end; the others stay as they are."""
    before, mark, after = PAGE.read_text(encoding="utf-8").partition(f"{title}\n")
    _, next_mark, others = after.partition("\n## ")
    section = f"{title}\n\n{text.strip()}\n"
    start = before if mark else f"{before.rstrip()}\n\n"
    PAGE.write_text(start + section + next_mark + others, encoding="utf-8")


def prepare_dataset(dataset: Dataset, plan: tuple[str, ...], data: Path, workspace: Path) -> None:
    """Convert and plan, unless it is done; `plan` are words after `msd plan ID`."""
    if not folder_of(workspace / "raw", dataset).is_dir():
        words = (*dataset.convert[:1], str(data / dataset.convert[1]), *dataset.convert[2:])
        msd(workspace, "convert", *words, "--dataset", dataset.id, "--name", dataset.name)
    if not (folder_of(workspace / "preprocessed", dataset) / "plans.yaml").is_file():
        msd(workspace, "plan", dataset.id, *plan)


def cell_of_draws(entries: list[dict]) -> str:
    """Return the mean over draws, each draw's mean, and the mean standard deviation over cases."""
    if not entries:
        return ""
    means = [entry["mean"] for entry in entries]
    spread = statistics.mean(entry["std"] or 0.0 for entry in entries)
    return f"**{statistics.mean(means):.3f}** ({', '.join(f'{m:.3f}' for m in means)}) ± {spread:.3f}"


def dice_of_cases(folder: Path) -> dict[str, float]:
    """Return each case's mean Dice over its classes; empty where nothing was scored."""
    if not (folder / "summary.json").is_file():
        return {}
    cases = {}
    for case in read_scores(folder).cases:
        found = [score.dice for score in case.classes if score.dice is not None]
        if found:
            cases[case.case] = sum(found) / len(found)
    return cases


def folder_of(parent: Path, dataset: Dataset) -> Path:
    """Return a dataset's folder below `raw` or `results`."""
    return parent / f"Dataset{int(dataset.id):03d}_{dataset.name}"


def predictions_of(workspace: Path, experiment: Experiment, observer: str) -> Path:
    """Return where an experiment's test predictions are scored against one observer."""
    return workspace / "predictions" / (experiment.name + (f"-{observer}" if observer else ""))


_HEADER = """Scores of `supervised` on public data, on each image's own grid.
`n` counts scored cases; ± is the standard deviation over cases, of one training (one seed).
HD95 is the larger of the two directed 95th percentiles; a missed structure counts with the image's diagonal.
No validation label chose weights: the last averaged weights predict.

Regenerate this section with `make results DATA=FOLDER`, FOLDER holding the sets as published.

| data | config | training cases | scored on | class | n | seed | Dice | HD95 | missed | training |
|---|---|---|---|---|---|---|---|---|---|---|
"""
_FOOTER = """
The sets are subsets of the published ones: 60 labelled Hippocampus cases (fold 0 validates on 12), 60 labelled chest
radiographs with 96 unlabelled ones (20 set aside), 16 retinal photographs of 8 children (2 children set aside), and
135 cardiac slices of 8 patients (2 patients set aside).
"""

if __name__ == "__main__":
    main()
