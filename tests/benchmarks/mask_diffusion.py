"""Regenerate "Diffusion on masks" in docs/results.md: five training strategies beside the same network without them.

    python tests/benchmarks/mask_diffusion.py --data FOLDER --workspace FOLDER [--only hippocampus lungs vessels]

FOLDER holds Task04_Hippocampus, cxr_shenzhen and CHASEDB1 as published. Everything finished is reused, so an
interrupted run goes on; nothing but docs/results.md is written outside of the workspace.
"""

import argparse
import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import (
    HIPPOCAMPUS,
    LUNGS,
    VESSELS,
    Dataset,
    dice_of_cases,
    folder_of,
    msd,
    prepare_dataset,
    replace_section,
)

from medsegdiff_cli.metrics.paired import bootstrap_interval

TITLE = "## Diffusion on masks"
STRATEGIES = ("recycling", "mask-diffusion", "recycling-next", "self-conditioning", "self-conditioning-next")
TWIN = "supervised"
STEPS = (2, 5, 11)


@dataclass(frozen=True)
class Study:
    """One dataset, on which the methods are trained alike.

    Attributes:
        plan: words after `msd plan ID`, for the grid of the study.
        words: words after `msd train METHOD ID`.
        scored_on: a sentence for the page.
        tiny: methods that are trained at scale `tiny` instead: that they run through is shown, not how good they are.
    """

    name: str
    dataset: Dataset
    plan: tuple[str, ...]
    words: tuple[str, ...]
    scored_on: str
    tiny: tuple[str, ...] = ()

    def words_of(self, method: str) -> tuple[str, ...]:
        """Return the words of a method's training."""
        network = ("--set", "network=imgx") if method == TWIN else ()
        return (*self.words, "--scale", "tiny" if method in self.tiny else "small", *network)

    def run_of(self, method: str, workspace: Path) -> Path:
        """Return the folder of a method's run."""
        scale = "__scale-tiny" if method in self.tiny else ""
        network = "__network-imgx" if method == TWIN else ""
        config = self.words[self.words.index("--config") + 1]
        return folder_of(workspace / "results", self.dataset) / f"{method}__{config}{scale}{network}"


STUDIES = (
    Study(
        "lungs",
        LUNGS,
        ("--geometry", "resize", "--size", "64"),
        ("--config", "2d"),
        "Lungs, 64 x 64: 20 test images, scored on their own grid.",
        STRATEGIES[2:],
    ),
    Study(
        "vessels",
        VESSELS,
        ("--geometry", "resize", "--size", "128"),
        ("--config", "2d"),
        "Vessels, 128 x 128, where thin vessels are lost: 4 test images, scored on their own grid.",
        (*STRATEGIES, TWIN),
    ),
    Study(
        "hippocampus",
        HIPPOCAMPUS,
        (),
        ("--config", "3d"),
        "Hippocampus: fold 0's 12 validation cases, which chose nothing.",
        STRATEGIES[2:],
    ),
)


def main() -> None:
    """Train, predict and score whatever is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[study.name for study in STUDIES])
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    for study in () if options.write_only else STUDIES:
        if study.name in options.only:
            prepare_dataset(study.dataset, study.plan, options.data, workspace)
            for method in (*STRATEGIES[:1], TWIN, *STRATEGIES[1:]):
                run(study, method, workspace)
    write_section(workspace)


def run(study: Study, method: str, workspace: Path) -> None:
    """Train; predict and score the images that nothing was trained on, step by step for what has steps."""
    model = study.run_of(method, workspace)
    msd(workspace, "train", method, study.dataset.id, *study.words_of(method), "--quiet")
    images = images_of(study, model, workspace)
    for steps in (None,) if method == TWIN or method in study.tiny else STEPS:
        output = predictions_of(study, method, steps, workspace)
        walk = () if steps is None else ("--steps", str(steps), "--save-steps", "--draws", "3", "--save-members")
        msd(workspace, "predict", str(model), str(images), str(output), "--workers", "0", "--quiet", *walk)
        msd(workspace, "evaluate", str(output), study.dataset.id, "--workers", "0", "--quiet")
        if steps is not None:
            by_step = ("--per-step", "--per-member")
            msd(workspace, "evaluate", str(output), study.dataset.id, "--workers", "0", "--quiet", *by_step)


def images_of(study: Study, model: Path, workspace: Path) -> Path:
    """Return the folder of test images, or for a set without them a copy of fold 0's validation images."""
    raw = folder_of(workspace / "raw", study.dataset)
    if study.dataset.test_images:
        return raw / "imagesTs"
    chosen = workspace / "validation_images" / study.name
    cases = json.loads((model / "fold_0" / "run.json").read_text(encoding="utf-8"))["val_cases"]
    for image in sorted((raw / "imagesTr").iterdir()):
        if any(image.name.startswith(f"{case}_") for case in cases):
            chosen.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, chosen / image.name)
    return chosen


def predictions_of(study: Study, method: str, steps: int | None, workspace: Path) -> Path:
    """Return where a method's predictions are scored."""
    return workspace / "predictions" / f"masks-{study.name}-{method}{'' if steps is None else f'-{steps}'}"


def write_section(workspace: Path) -> None:
    """Write the section from the scores in the workspace."""
    rows = [_row(study, method, workspace) for study in STUDIES for method in (TWIN, *STRATEGIES)]
    steps = [_steps_row(study, method, n, workspace) for study in STUDIES for method in STRATEGIES for n in STEPS]
    shown = [study for study in STUDIES if any(f"| {study.dataset.name} |" in row for row in rows)]
    text = _TEXT.format(scored_on="\n".join(study.scored_on for study in shown))
    replace_section(TITLE, text + "\n".join(filter(None, rows)) + _STEPS_TEXT + "\n".join(filter(None, steps)))


def _row(study: Study, method: str, workspace: Path) -> str:
    steps = None if method == TWIN or method in study.tiny else 5
    summary = predictions_of(study, method, steps, workspace) / "summary.json"
    record = study.run_of(method, workspace) / "fold_0" / "run.json"
    if not (summary.is_file() and record.is_file()):
        return ""
    scores = json.loads(summary.read_text(encoding="utf-8"))
    run_record = json.loads(record.read_text(encoding="utf-8"))
    overall = scores["aggregations"]["overall"]
    distance, unit = overall["case_by_class"]["hd95_max"], "/".join(scores["units"]["distance"])
    own, twin = dice_of_cases(summary.parent), dice_of_cases(predictions_of(study, TWIN, None, workspace))
    mean, spread = statistics.mean(own.values()), statistics.stdev(own.values())
    interval = ""
    if twin:
        gains = np.array([100 * (own[case] - twin[case]) for case in sorted(own.keys() & twin.keys())])
        if method != TWIN and len(gains) > 1:
            low, high = bootstrap_interval(gains, seed=0)
            interval = f"{gains.mean():+.1f} ({low:+.1f} to {high:+.1f})"
    command = " ".join(["msd train", method, study.dataset.id, *study.words_of(method)])
    return (
        f"| {study.dataset.name} | `{method}` | {len(run_record['train_cases'])} | {len(own)} | {run_record['seed']} "
        f"| {mean:.3f} ± {spread:.3f} | {interval} | {distance['mean']:.2f} {unit} | `{command}` |"
    )


def _steps_row(study: Study, method: str, steps: int, workspace: Path) -> str:
    file = predictions_of(study, method, steps, workspace) / "steps.json"
    if not file.is_file():
        return ""
    scores = json.loads(file.read_text(encoding="utf-8"))
    curve = _of_all_classes(scores["curves"])
    spread = _of_all_classes(scores["spreads"])
    (change,) = _of_all_classes(scores["changes"])
    means = " ".join(f"{100 * point['values']['mean']:.1f}" for point in curve)
    apart = " ".join(f"{100 * point['values']['mean']:.2f}" for point in spread)
    return (
        f"| {study.dataset.name} | `{method}` | {steps} | {means} | {100 * change['values']['mean']:+.2f} "
        f"| {change['improved']} of {change['values']['n']} | {apart} |"
    )


def _of_all_classes(entries: list[dict]) -> list[dict]:
    """Return the entries on the mean Dice over the classes, in the order of sampling."""
    return [entry for entry in entries if entry["class_name"] is None and entry["metric"] == "dice"]


_TEXT = """\
Five ways to train diffusion on masks (Fu et al. 2023), beside the same network (`network=imgx`) trained on labels
without diffusion: same split, steps, batch, augmentation and learning rate. Scale `small`; the rows at scale `tiny`
show that a method runs through, not how good it is. Dice is the mean over cases of a case's mean over its classes, ±
the standard deviation over cases, of one training (one seed). The difference to `supervised` is in points, case by
case, with a 95 % bootstrap interval over cases. DDPM in 5 steps, 3 draws, their mean (at scale `tiny` one draw).

{scored_on}

Regenerate this section with `make mask-diffusion DATA=FOLDER`.

| data | method | training cases | n | seed | Dice | minus `supervised` | HD95 | training |
|---|---|---|---|---|---|---|---|---|
"""
_STEPS_TEXT = """

Dice in points after each sampling step (mean of 3 draws fused), the last step minus the first and in how many cases it
is better, and how far the draws are apart (mean over cases of the largest minus the smallest Dice of a draw, by step).

| data | method | steps | Dice by step | last - first | improved | draws apart |
|---|---|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
