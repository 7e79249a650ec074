"""Regenerate "Few labels" in docs/results.md: pixel classifiers on a diffusion model, beside `supervised`.

    python tests/benchmarks/few_labels.py --data FOLDER --workspace FOLDER [--processes 2]

FOLDER holds cxr_shenzhen and Task04_Hippocampus as published. One pretraining serves all methods, numbers of labels
and draws. Everything finished is reused, so an interrupted run goes on; nothing but docs/results.md is written outside
of the workspace.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import cell_of_draws, replace_section

from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.workflows.phantoms import shift_images

TITLE = "## Few labels"
METHODS = ("tedm", "ledm", "ledme", "step-probe", "supervised")
BUDGETS, SEEDS = (6, 1, 12, 3), (0, 1)
SHIFT_SEED = 0
LUNGS = ("11", "Dataset011_Lungs")
HIPPOCAMPUS = ("4", "Dataset004_Hippocampus")
# The baseline's network is the pretraining's, its batch the classifiers'.
AS_PRETRAINED = ("--set", "network=tedm", "--set", "training.batch_size=4")
# The published preset on images of 128 x 128, its batch of 4 for the classifier, too.
PAPER = ("--preset", "paper", "--set", "training.batch_size=4")


@dataclass(frozen=True)
class Training:
    """One training of one method.

    Attributes:
        words: what `msd train METHOD 11` is told besides labels and seed.
        run: the run's name without them.
    """

    method: str
    n_labels: int
    seed: int
    words: tuple[str, ...]
    variant: str = ""

    @property
    def label(self) -> str:
        """Return the name of the run, and of the folders of its predictions."""
        return f"few-{self.method}{self.variant}-n{self.n_labels}-seed{self.seed}"


def trainings() -> Iterator[Training]:
    """Yield all trainings, those on which most depends first."""
    for budget in BUDGETS:
        for seed in SEEDS:
            for method in METHODS:
                yield Training(method, budget, seed, AS_PRETRAINED if method == "supervised" else ())
        if budget == BUDGETS[0]:
            yield from (Training("tedm", budget, seed, PAPER, "-paper") for seed in SEEDS)


def main() -> None:
    """Train, predict and score whatever is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    if not options.write_only:
        prepare(options.data, workspace)
        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(lambda training: run(training, workspace), trainings()))
            list(pool.map(lambda which: run_hippocampus(which, workspace), HIPPOCAMPUS_RUNS))
    write_section(workspace)


def prepare(data: Path, workspace: Path) -> None:
    """Convert, plan, shift the test images and pretrain."""
    if not (workspace / "raw" / LUNGS[1]).is_dir():
        words = "--images CXR_png/*.png --labels mask/*.png --label-suffix _mask --label-map 255:lung --threshold 127"
        words += " --test-count 20 --domain shenzhen"
        msd(
            workspace,
            "convert",
            "folder",
            str(data / "cxr_shenzhen"),
            "--dataset",
            "11",
            "--name",
            "Lungs",
            *words.split(),
        )
        msd(workspace, "plan", "11", "--geometry", "resize", "--size", "64")
    if not (workspace / "raw" / HIPPOCAMPUS[1]).is_dir():
        source = str(data / "Task04_Hippocampus")
        msd(
            workspace, "convert", "decathlon", source, "--dataset", "4", "--name", "Hippocampus", "--test-as-unlabelled"
        )
        msd(workspace, "plan", "4")
    if not (workspace / "shifted").is_dir():
        shift_images(workspace / "raw" / LUNGS[1] / "imagesTs", workspace / "shifted", SHIFT_SEED)
    msd(workspace, "pretrain", "tedm", "11", "--scale", "small")
    msd(workspace, "pretrain", "tedm", "11", "--scale", "small", "--preset", "paper")
    for config in ("2d", "3d"):
        msd(workspace, "pretrain", "tedm", "4", "--scale", "tiny", "--config", config)


def run(training: Training, workspace: Path) -> None:
    """Train on chest radiographs; predict and score the test images and their shifted copies."""
    words = ("--cases", str(training.n_labels), "--seed", str(training.seed), "--scale", "small", *training.words)
    msd(workspace, "train", training.method, "11", *words, "--name", training.label)
    (model,) = (workspace / "results" / LUNGS[1]).glob(f"*__{training.label}")
    for domain, images in (("test", workspace / "raw" / LUNGS[1] / "imagesTs"), ("shifted", workspace / "shifted")):
        output = workspace / "predictions" / f"{training.label}-{domain}"
        msd(workspace, "predict", str(model), str(images), str(output), "--workers", "0")
        msd(workspace, "evaluate", str(output), "11", "--workers", "0")


# The last: a classifier with the steps that it has at scale `small` and more, instead of fifty.
HIPPOCAMPUS_RUNS = (
    *((method, config, "") for config in ("2d", "3d") for method in ("tedm", "ledm", "supervised")),
    ("ledm", "2d", "400"),
)


def run_hippocampus(which: tuple[str, str, str], workspace: Path) -> None:
    """Train with six labels; the fold's validation cases are scored at the end."""
    method, config, steps = which
    words = ["--cases", "6", "--config", config, "--scale", "tiny", "--name", _hippocampus_name(which)]
    words += ["--set", "network=tedm"] if method == "supervised" else []
    words += ["--set", f"training.steps={steps}"] if steps else []
    msd(workspace, "train", method, "4", *words)


def _hippocampus_name(which: tuple[str, str, str]) -> str:
    return "-".join(("few", *filter(None, which)))


def msd(workspace: Path, *words: str) -> None:
    """Run one command of the tool, or stop with its exit code."""
    print("msd", *words, flush=True)
    environment = {**os.environ, "MSD_WORKSPACE": str(workspace)}
    done = subprocess.run([sys.executable, "-m", "medsegdiff_cli", *words, "-q"], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}: msd {' '.join(words)}")


def write_section(workspace: Path) -> None:
    """Write the section from the scores in the workspace."""
    rows = [_row(method, variant, budget, workspace) for method, variant, budget in _table_rows()]
    rows += [_mean_mask_row(budget, workspace) for budget in sorted(BUDGETS)]
    hippocampus = [_hippocampus_row(which, workspace) for which in HIPPOCAMPUS_RUNS]
    text = _LUNGS_TEXT + "\n".join(filter(None, rows)) + _HIPPOCAMPUS_TEXT + "\n".join(filter(None, hippocampus))
    replace_section(TITLE, text)


def _table_rows() -> Iterator[tuple[str, str, int]]:
    for budget in sorted(BUDGETS):
        yield from ((method, "", budget) for method in METHODS)
    yield "tedm", "-paper", BUDGETS[0]


def _row(method: str, variant: str, budget: int, workspace: Path) -> str:
    cells = []
    for domain in ("test", "shifted"):
        names = [Training(method, budget, seed, (), variant).label for seed in SEEDS]
        files = [workspace / "predictions" / f"{name}-{domain}" / "summary.json" for name in names]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        cells.append(
            cell_of_draws([summary["aggregations"]["overall"]["per_class"]["lung"]["dice"] for summary in found])
        )
    if not any(cells):
        return ""
    preset = "paper" if variant else "recommended"
    return f"| {budget} | `{method}` | {preset} | " + " | ".join(cells) + " |"


def _mean_mask_row(budget: int, workspace: Path) -> str:
    """Return the score of the mean of the drawn labels, the same for every image."""
    labels = workspace / "raw" / LUNGS[1]
    means = []
    for seed in SEEDS:
        runs = list((workspace / "results" / LUNGS[1]).glob(f"*__few-*-n{budget}-seed{seed}/fold_0/run.json"))
        if runs:
            cases = json.loads(runs[0].read_text(encoding="utf-8"))["train_cases"]
            masks = [read_label(labels / "labelsTr" / f"{case}.png").array[0] > 0 for case in cases]
            mean = np.mean(masks, axis=0) >= 0.5
            tests = [read_label(path).array[0] > 0 for path in sorted((labels / "labelsTs").glob("*.png"))]
            means.append(float(np.mean([2 * (mean & test).sum() / (mean.sum() + test.sum()) for test in tests])))
    if not means:
        return ""
    cell = f"**{statistics.mean(means):.3f}** ({', '.join(f'{m:.3f}' for m in means)})"
    return f"| {budget} | mean of the labels | | {cell} | {cell} |"


def _hippocampus_row(which: tuple[str, str, str], workspace: Path) -> str:
    method, config, steps = which
    runs = workspace / "results" / HIPPOCAMPUS[1]
    found = list(runs.glob(f"*__{_hippocampus_name(which)}/fold_0/validation/summary.json"))
    if not found:
        return ""
    overall = json.loads(found[0].read_text(encoding="utf-8"))["aggregations"]["overall"]
    dice = " | ".join(
        f"{entry['dice']['mean']:.3f} ± {entry['dice']['std']:.3f}" for entry in overall["per_class"].values()
    )
    mean = overall["case_by_class"]["dice"]["mean"]
    return f"| {config} | `{method}` | {steps or 'of the scale'} | {dice} | **{mean:.3f}** |"


_LUNGS_TEXT = """\
Chest radiographs (Shenzhen set, 64 x 64, scale `small`): one `msd pretrain tedm 11 --scale small` on 128
images (96 without a label, 32 of fold 0's training part, labels unseen), then every method with the labels of N
patients, two draws of labels. Dice of the lungs on 20 images that nothing was trained on, on their own grid of
512 x 512, and on a seeded change of appearance of the same images (contrast, shading, blur, noise). Bold is the mean
over the draws, each draw's mean follows, ± is the standard deviation over cases; with 20 cases a mean is known to about
0.015. `supervised` has the same network, batch and augmentation. All images come from one hospital, and 128 are few for
a diffusion model.

Regenerate this section with `make few-labels DATA=FOLDER`.

| labels | method | preset | Dice, test | Dice, shifted |
|---|---|---|---|---|
"""
_HIPPOCAMPUS_TEXT = """

Hippocampus, six labels, scale `tiny` (minutes; it shows that volumes run through, not how well they are segmented):
fold 0's 12 validation cases, one seed, ± over cases. One pretraining of 400 steps a configuration, on the 48 training
and 60 unlabelled volumes. A classifier has 50 steps at this scale, which is too few; the last row has 400.

| config | method | steps | Anterior | Posterior | mean |
|---|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
