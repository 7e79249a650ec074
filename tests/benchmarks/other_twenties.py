"""Regenerate "Six labels, other images set aside" in docs/results.md: the last rows of the section before, repeated.

    python tests/benchmarks/other_twenties.py --data FOLDER --workspace FOLDER [--only 1 2]

20 of 60 labelled radiographs are few, and which ones are set aside moves every score. The other 40 are shuffled by a
fixed seed and cut in two: with the first 20 each labelled image is set aside once. Pretraining, training, settings and
draws are those of `pretrainings.py` on images of 128 x 128; nothing was chosen on these images being set aside.
"""

import argparse
import random
import statistics
from dataclasses import replace
from pathlib import Path

from pretrainings import CHEST_ARMS, CHEST_PLAN, GOAL, LUNGS_STUDY, SEEDS, Arm, Study, predictions, pretrain, run
from results import LUNGS, Dataset, dice_of_cases, folder_of, msd, prepare_dataset, replace_section

TITLE = "## Six labels, other images set aside"
SHUFFLE_SEED = 0
SET_ASIDE = 20


def study_of(number: int, workspace: Path) -> Study:
    """Return the study whose test images are the `number`th 20 of the others' 40 (1 or 2)."""
    labels = folder_of(workspace / "raw", LUNGS) / "labelsTr"
    cases = sorted(path.name.removesuffix(".png") for path in labels.glob("*.png"))
    random.Random(SHUFFLE_SEED).shuffle(cases)
    listed = workspace / f"set_aside_{number}.txt"
    listed.write_text("\n".join(sorted(cases[SET_ASIDE * (number - 1) : SET_ASIDE * number])) + "\n", encoding="utf-8")
    at = LUNGS.convert.index("--test-count")
    convert = (*LUNGS.convert[:at], "--test-list", str(listed), *LUNGS.convert[at + 2 :])
    dataset = Dataset(str(20 + number), f"Lungs{number}", convert)
    return replace(LUNGS_STUDY, name=f"lungs{number}", dataset=dataset, prefix=f"twenty{number}-", domains=("test",))


def main() -> None:
    """Convert, pretrain, train, predict and score whatever is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--only", nargs="*", type=int, default=[1, 2], help="these alone, for processes side by side")
    parser.add_argument("--write-only", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    for number in () if options.write_only else options.only:
        study = study_of(number, workspace)
        prepare_dataset(study.dataset, study.plan, options.data, workspace)
        if not (folder_of(workspace / "preprocessed", study.dataset) / "chest.yaml").is_file():
            msd(workspace, "plan", study.dataset.id, *CHEST_PLAN)
        for arm in reversed(CHEST_ARMS):
            start = pretrain(study, arm, workspace)
            for seed in SEEDS:
                run(study, arm, seed, start, workspace)
    write_section(workspace)


def write_section(workspace: Path) -> None:
    """Write the section from the scores in the workspace, once they are all there."""
    studies = (LUNGS_STUDY, study_of(1, workspace), study_of(2, workspace))
    rows, means = [], {}
    for arm in CHEST_ARMS:
        found = [[dice(study, arm, seed, workspace) for seed in SEEDS] for study in studies]
        if any(mean is None for draws in found for mean in draws):
            return
        of_sets = [statistics.mean(draws) for draws in found]
        means[arm.method] = statistics.mean(of_sets)
        cells = [
            f"**{mean:.3f}** ({', '.join(f'{draw:.3f}' for draw in draws)})"
            for mean, draws in zip(of_sets, found, strict=True)
        ]
        rows.append(f"| `{arm.method}` | {' | '.join(cells)} | **{means[arm.method]:.3f}** |")
    goal = f"The mean of `ptdr` is {'at least' if means['ptdr'] >= GOAL else 'below'} the goal of {GOAL}."
    replace_section(TITLE, _TEXT + "\n".join(rows) + f"\n\n{goal}")


def dice(study: Study, arm: Arm, seed: int, workspace: Path) -> float | None:
    """Return the mean Dice of the images set aside; None before they are scored."""
    found = dice_of_cases(workspace / predictions(study.label_of(arm, seed), "test"))
    return statistics.mean(found.values()) if found else None


_TEXT = """\
The rows on images of 128 x 128 of the section before, repeated with other images set aside: its other 40 labelled
images are shuffled by a seed and cut in two, so that each of the 60 is set aside once. Everything starts anew on the 40
that are left and the 96 unlabelled images: pretraining, draws of six labels, training. The settings were chosen on the
first split, on images that the two others set aside. Dice of the 20 images set aside: mean of the draws, each draw's
mean in brackets, and the mean of the three sets.

Regenerate this section with `make pretrainings DATA=FOLDER`.

| method | the 20 above | the next 20 | the last 20 | mean |
|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
