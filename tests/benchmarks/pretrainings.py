"""Regenerate "Pretrain once, fine-tune with six labels" in docs/results.md: every pretraining beside none.

    python tests/benchmarks/pretrainings.py --data FOLDER --workspace FOLDER [--only lungs hippocampus]

FOLDER holds cxr_shenzhen and Task04_Hippocampus as published. A pretraining serves all methods, draws of labels and
seeds that start from it. Everything finished is reused, so an interrupted run goes on; nothing but docs/results.md is
written outside of the workspace.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from results import (
    HIPPOCAMPUS,
    LUNGS,
    Dataset,
    cell_of_draws,
    dice_of_cases,
    folder_of,
    msd,
    prepare_dataset,
    replace_section,
)

from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.workflows.phantoms import shift_images

TITLE = "## Pretrain once, fine-tune with six labels"
SEEDS = (0, 1)
# What `ptdr` with six labels is to reach on the test images.
GOAL = 0.92
SHIFT_SEED = 0
# The images of the 40 labels: scored where no training saw the labels of those that are not among the six.
OTHERS_DOMAIN = "others"


@dataclass(frozen=True)
class Arm:
    """A training with six labels.

    Attributes:
        name: for the page and the names of runs.
        start: the pretraining, or the run on all labels, that it starts from; "" for random weights.
        words: after `msd train|finetune METHOD DATASET`, in place of the study's.
        in_words: of the row, where `start` does not say it.
    """

    name: str
    method: str
    start: str = ""
    words: tuple[str, ...] = ()
    in_words: str = ""

    @property
    def domains(self) -> tuple[str, ...]:
        """What it is scored on."""
        saw_all_labels = self.start in ("supervised", "hybrid", *OTHERS)
        return ("test", "shifted") if saw_all_labels else ("test", "shifted", OTHERS_DOMAIN)


OBJECTIVES = ("diffusion", "supervised", "hybrid", "global-cl", "global-local-cl")
ARMS = (
    Arm("vanilla", "vanilla"),
    Arm("ptdr", "ptdr", "diffusion"),
    Arm("transfer", "transfer", "supervised"),
    Arm("hybrid", "hybrid", "hybrid"),
    Arm("global-cl", "global-cl", "global-cl"),
    Arm("global-local-cl", "global-local-cl", "global-local-cl"),
    Arm("ledm", "ledm", "diffusion"),
    Arm("supervised-ledm", "ledm", "supervised"),
    Arm("hybrid-ledm", "hybrid-ledm", "hybrid"),
)
# Of other make, from random weights: there are no ImageNet weights beside this script. Steps on all labels.
OTHERS = {"deeplabv3": "300", "segformer": "100"}
_SIX_LABELS = ("--scale", "small", "--set", "training.batch_size=4", "--cases", "6")
OTHERS_ARMS = tuple(Arm(n, n, n, ("--fold", "all", *_SIX_LABELS, "--set", "training.steps=60")) for n in OTHERS)
# Longer, on larger images that are prepared as the paper's radiographs are; lungs are not alike left and right.
CHEST_PLAN = ("--plans-name", "chest", "--geometry", "resize", "--size", "128", "--equalise-gamma", "0.5")
CHEST_WORDS = ("--plans-name", "chest", "--fold", "all", "--scale", "small")
_LONG_WORDS = (*CHEST_WORDS, "--set", "training.batch_size=4", "--set", "training.steps=1000")
_CHEST_TRAINING = (*_LONG_WORDS, "--set", "augmentation.mirror=false", "--cases", "6")
CHEST_ARMS = (
    Arm("vanilla-chest", "vanilla", "", _CHEST_TRAINING, "random weights, 128 x 128"),
    Arm("ptdr-chest", "ptdr", "chest", _CHEST_TRAINING, "`pretrain-diffusion`, 128 x 128"),
)


@dataclass(frozen=True)
class Study:
    """One dataset.

    Attributes:
        pretraining, training: words after `msd pretrain` and after `msd train|finetune`.
        seeds: of the trainings; each draws its own labels.
        prefix: of the labels of runs, since predictions of all studies are in one folder.
        domains: what is scored of what arms are scored on.
    """

    name: str
    dataset: Dataset
    plan: tuple[str, ...]
    pretraining: tuple[str, ...]
    training: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    prefix: str = ""
    domains: tuple[str, ...] = ("test", "shifted", OTHERS_DOMAIN)

    def label_of(self, arm: Arm, seed: int) -> str:
        """Return the ending of the name of an arm's run."""
        return f"{self.prefix}arm-{arm.name}-seed{seed}"

    def run_of(self, label: str, workspace: Path) -> Path:
        """Return the folder of a run by the ending of its name."""
        (found,) = (folder_of(workspace / "results", self.dataset)).glob(f"*__{label}")
        return found


LUNGS_STUDY = Study(
    "lungs",
    LUNGS,
    ("--geometry", "resize", "--size", "64"),
    ("--fold", "all", "--scale", "small", "--set", "training.steps=400", "--set", "training.batch_size=16"),
    ("--fold", "all", "--scale", "small", "--set", "training.batch_size=4", "--cases", "6")
    + ("--set", "training.steps=400"),
    (*ARMS, *CHEST_ARMS, *OTHERS_ARMS),
    SEEDS,
)
_VOLUMES = ("--config", "3d", "--scale", "tiny")
_HUNDRED = (*_VOLUMES, "--set", "training.steps=100", "--set", "training.warmup_steps=10")
# Features of a whole volume at three timesteps cost ten times a step of the network that they are taken from.
_PIXELS = (*_VOLUMES, "--set", "training.steps=25", "--set", "training.warmup_steps=0", "--cases", "6")
HIPPOCAMPUS_STUDY = Study(
    "hippocampus",
    HIPPOCAMPUS,
    (),
    _HUNDRED,
    (*_HUNDRED, "--cases", "6"),
    tuple(replace(arm, words=_PIXELS) if arm.method.endswith("ledm") else arm for arm in ARMS),
    SEEDS[:1],
)
STUDIES = (LUNGS_STUDY, HIPPOCAMPUS_STUDY)


def main() -> None:
    """Pretrain, train, predict and score whatever is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[study.name for study in STUDIES])
    parser.add_argument("--arms", nargs="*", help="these alone, for several processes side by side")
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    for study in () if options.write_only else STUDIES:
        if study.name in options.only:
            prepare(study, options.data, workspace)
            for arm in (arm for arm in study.arms if options.arms is None or arm.name in options.arms):
                start = pretrain(study, arm, workspace)
                for seed in study.seeds:
                    run(study, arm, seed, start, workspace)
    write_section(workspace)


def prepare(study: Study, data: Path, workspace: Path) -> None:
    """Convert and plan, and shift the test images, unless it is done."""
    prepare_dataset(study.dataset, study.plan, data, workspace)
    if study.dataset.test_images and not (workspace / "shifted").is_dir():
        shift_images(folder_of(workspace / "raw", study.dataset) / "imagesTs", workspace / "shifted", SHIFT_SEED)
    planned = (folder_of(workspace / "preprocessed", study.dataset) / "chest.yaml").is_file()
    if study.dataset == LUNGS and not planned:
        msd(workspace, "plan", study.dataset.id, *CHEST_PLAN)


def pretrain(study: Study, arm: Arm, workspace: Path) -> Path | None:
    """Return the run that an arm starts from, made when it is missing; None for random weights."""
    if not arm.start:
        return None
    label = f"arms-{arm.start}"
    if arm.start == "chest":
        words = (*CHEST_WORDS, "--set", "training.batch_size=8", "--set", "training.steps=1000")
        msd(workspace, "pretrain", "diffusion", study.dataset.id, *words, "--name", label, "--quiet")
    elif arm.start in OTHERS:
        words = ("--fold", "all", "--scale", "small", "--set", "weights=random")
        length = ("--set", f"training.steps={OTHERS[arm.start]}", "--set", "training.batch_size=8")
        msd(workspace, "train", arm.method, study.dataset.id, *words, *length, "--name", label, "--quiet")
    else:
        msd(workspace, "pretrain", arm.start, study.dataset.id, *study.pretraining, "--name", label, "--quiet")
    return study.run_of(label, workspace)


def run(study: Study, arm: Arm, seed: int, start: Path | None, workspace: Path) -> None:
    """Train with six labels; predict and score the test images and their shifted copies, where there are any."""
    label = study.label_of(arm, seed)
    verb, source = ("train", ()) if start is None else ("finetune", ("--from", str(start)))
    words = (*(arm.words or study.training), "--seed", str(seed), "--name", label, "--quiet")
    msd(workspace, verb, arm.method, study.dataset.id, *source, *words)
    if not study.dataset.test_images:
        return
    model = study.run_of(label, workspace)
    raw = folder_of(workspace / "raw", study.dataset)
    images = {"test": raw / "imagesTs", "shifted": workspace / "shifted", OTHERS_DOMAIN: raw / "imagesTr"}
    for domain in (name for name in arm.domains if name in study.domains):
        output = workspace / predictions(label, domain)
        labels = str(raw / "labelsTr") if domain == OTHERS_DOMAIN else study.dataset.id
        msd(workspace, "predict", str(model), str(images[domain]), str(output), "--workers", "0", "--quiet")
        msd(workspace, "evaluate", str(output), labels, "--workers", "0", "--quiet")


def predictions(label: str, domain: str) -> Path:
    """Return where the predictions of a run are, below the workspace."""
    return Path("predictions") / f"{label}-{domain}"


def write_section(workspace: Path) -> None:
    """Write the section from the scores in the workspace."""
    lungs = [_lungs_row(arm, workspace) for arm in LUNGS_STUDY.arms]
    volumes = [_volumes_row(arm, workspace) for arm in HIPPOCAMPUS_STUDY.arms]
    chest = _CHEST_TEXT if any(_lungs_row(arm, workspace) for arm in CHEST_ARMS) else ""
    chest += _goal_in_words(workspace) if chest else ""
    rows = ["\n".join(filter(None, part)) for part in (lungs, volumes)]
    replace_section(TITLE, _LUNGS_TEXT + rows[0] + chest + _VOLUMES_TEXT + rows[1])


def _lungs_row(arm: Arm, workspace: Path) -> str:
    cells = []
    for metric, domain in (("dice", "test"), ("dice", "shifted"), ("iou", "test")):
        files = [workspace / predictions(LUNGS_STUDY.label_of(arm, seed), domain) / "summary.json" for seed in SEEDS]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        cells.append(
            cell_of_draws([summary["aggregations"]["overall"]["per_class"]["lung"][metric] for summary in found])
        )
    cells.append(_others_cell(arm, workspace))
    return f"| `{arm.method}` | {_start(arm)} | {' | '.join(cells)} |" if any(cells) else ""


def _goal_in_words(workspace: Path) -> str:
    """Return whether `ptdr` reached its goal on the test images."""
    files = (workspace / predictions(LUNGS_STUDY.label_of(CHEST_ARMS[-1], seed), "test") for seed in SEEDS)
    dice = statistics.mean(statistics.mean(found.values()) for found in map(dice_of_cases, files) if found)
    return f"The goal for `ptdr`, a Dice of {GOAL} on the 20, is {'met' if dice >= GOAL else 'not met'}: {dice:.3f}."


def _others_cell(arm: Arm, workspace: Path) -> str:
    """Return the Dice of the images of the 40 labels that are not among a training's six; "" where there is none."""
    entries = []
    for label in (LUNGS_STUDY.label_of(arm, seed) for seed in SEEDS if OTHERS_DOMAIN in arm.domains):
        if dice := dice_of_cases(workspace / predictions(label, OTHERS_DOMAIN)):
            six = read_run(LUNGS_STUDY.run_of(label, workspace) / "fold_all").train_cases
            others = [value for case, value in dice.items() if case not in six]
            entries.append({"mean": statistics.mean(others), "std": statistics.stdev(others)})
    return cell_of_draws(entries)


def _start(arm: Arm) -> str:
    if not arm.start or arm.in_words:
        return arm.in_words or "random weights"
    return f"`{arm.method}` on 40 labels" if arm.start in OTHERS else f"`pretrain-{arm.start}`"


def _volumes_row(arm: Arm, workspace: Path) -> str:
    runs = folder_of(workspace / "results", HIPPOCAMPUS)
    found = list(runs.glob(f"*__{HIPPOCAMPUS_STUDY.label_of(arm, SEEDS[0])}/fold_0/validation/summary.json"))
    if not found:
        return ""
    overall = json.loads(found[0].read_text(encoding="utf-8"))["aggregations"]["overall"]
    dice = [f"{entry['dice']['mean']:.3f} ± {entry['dice']['std']:.3f}" for entry in overall["per_class"].values()]
    mean = overall["case_by_class"]["dice"]["mean"]
    return f"| `{arm.method}` | {_start(arm)} | {' | '.join(dice)} | **{mean:.3f}** |"


_LUNGS_TEXT = """\
Chest radiographs (Shenzhen set, 64 x 64, scale `small`). 20 of the 60 labelled images are set aside; no training saw
them, with or without labels. Each pretraining has the other 40 and, where it takes unlabelled images, 96 more: 400
steps of 16, one seed (`global-local-cl` as many again for its second stage). **`supervised` and `hybrid` see the labels
of all 40**, the others none. Then every method is trained with 6 of the 40 labels, 400 steps of 4, each row with as
many draws of labels as it lists, no validation. `vanilla` is the same network and training without a pretraining. All
with augmentation, `recommended` presets.

Dice and Jaccard (mean of each image's) of the lungs on the 20, on their own grid of 512 x 512, and on a seeded change
of appearance of the same images (contrast, shading, blur, noise). Bold is the mean over the draws, each draw's mean
follows, ± is the standard deviation over cases; with 20 cases a mean is known to about 0.015. `deeplabv3` and
`segformer` begin from random instead of ImageNet weights, with 300 and 100 steps of 8 on the 40 labels and 60 of 4 on
the six: they show that these baselines run, not what they can do. The last column is the Dice of those of the 40 that
are not among a training's six (34), for methods that saw none of the 40 labels before; their images were in the
pretraining. They are easier than the 20, of which one has a reference that leaves much of both lungs out.
Some references of either set count the heart as lung and most do not, so that a draw of six with more of them than
their share costs points.

Regenerate this section with `make pretrainings DATA=FOLDER`.

| method | starts from | Dice, test | Dice, shifted | Jaccard, test | Dice, 34 others |
|---|---|---|---|---|---|
"""
_CHEST_TEXT = """

The rows on images of 128 x 128, which are prepared as the paper's radiographs are (equalised, gamma 0.5), have 1000
steps of 4 without mirroring, after a pretraining of 1000 steps of 8. These settings were chosen on the 34 others, not
on the test images. """
_VOLUMES_TEXT = """

Hippocampus, 3D, six labels, scale `tiny`, 100 steps of 2 for each pretraining and each training, 25 for pixel
classifiers, in which these learn next to nothing (minutes; it shows that volumes run through, not how well they are
segmented): fold 0's 12 validation cases, one seed, ± over cases. `supervised` and `hybrid` see the labels of the 48
training cases.

| method | starts from | Anterior | Posterior | mean |
|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
