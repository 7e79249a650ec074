"""Regenerate "Diffusion on masks" in docs/results.md: five training strategies beside the same network without them.

    python tests/benchmarks/mask_diffusion.py --data FOLDER --workspace FOLDER [--only hippocampus lungs vessels]

FOLDER holds Task04_Hippocampus, cxr_shenzhen and CHASEDB1 as published. Everything finished is reused, so an
interrupted run goes on; nothing but docs/results.md is written outside of the workspace.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from results import HIPPOCAMPUS, LUNGS, VESSELS, Dataset, folder_of, msd, replace_section

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
        tiny: methods that are trained at scale `tiny` instead: that they run through is shown, not how good they are.
    """

    name: str
    dataset: Dataset
    plan: tuple[str, ...]
    words: tuple[str, ...]
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
    Study("lungs", LUNGS, ("--geometry", "resize", "--size", "64"), ("--config", "2d"), STRATEGIES[2:]),
    Study("vessels", VESSELS, ("--geometry", "resize", "--size", "256"), ("--config", "2d"), (*STRATEGIES, TWIN)),
    Study("hippocampus", HIPPOCAMPUS, (), ("--config", "3d"), STRATEGIES[2:]),
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
            prepare(study, options.data, workspace)
            for method in (*STRATEGIES[:1], TWIN, *STRATEGIES[1:]):
                run(study, method, workspace)


def prepare(study: Study, data: Path, workspace: Path) -> None:
    """Convert and plan, unless it is done."""
    dataset = study.dataset
    if not folder_of(workspace / "raw", dataset).is_dir():
        words = (*dataset.convert[:1], str(data / dataset.convert[1]), *dataset.convert[2:])
        msd(workspace, "convert", *words, "--dataset", dataset.id, "--name", dataset.name)
    if not (folder_of(workspace / "preprocessed", dataset) / "plans.yaml").is_file():
        msd(workspace, "plan", dataset.id, *study.plan)


def run(study: Study, method: str, workspace: Path) -> None:
    """Train; predict and score the images that nothing was trained on, step by step for what has steps."""
    model = study.run_of(method, workspace)
    msd(workspace, "train", method, study.dataset.id, *study.words_of(method), "--quiet")
    images = images_of(study, model, workspace)
    for steps in (None,) if method == TWIN or method in study.tiny else STEPS:
        output = predictions_of(study, method, steps, workspace)
        walk = () if steps is None else ("--steps", str(steps), "--save-steps", "--draws", "3", "--save-members")
        msd(workspace, "predict", str(model), str(images), str(output), "--workers", "0", "--quiet", *walk)
        by_step = () if steps is None else ("--per-step", "--per-member")
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


if __name__ == "__main__":
    main()
