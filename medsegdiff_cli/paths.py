"""Every folder and file name, once."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.errors import UsageError, did_you_mean

DATASET_JSON = "dataset.json"
LOCK = ".msd.lock"
EVALUATION_LOCK = ".msd-evaluate.lock"
SPLITS_JSON = "splits_final.json"
FINGERPRINT_JSON = "fingerprint.json"
PLANS_NAME = "plans"
RUN_JSON = "run.json"
RUN_PLAN = "plan.yaml"
RUN_RECIPE = "recipe.yaml"
METRICS_JSONL = "metrics.jsonl"
PROGRESS_PNG = "progress.png"
TRAINING_LOG = "training.log"
MANIFEST_JSON = "manifest.json"
BUNDLE_SUFFIX = ".msd"
CHECKPOINTS = "checkpoints"
BEST, LAST = "best", "last"
FEATURES = "features"
VALIDATION = "validation"
CROSS_VALIDATION = "crossval"
FOLD_PREFIX = "fold_"
SUMMARY_JSON = "summary.json"
SCORES_CSV = "scores.csv"
STEPS_JSON = "steps.json"
STEPS_CSV = "steps.csv"
STEP_CURVES_CSV = "step_curves.csv"
STEP_CURVES_PNG = "step_curves.png"
STEPS = "steps"
MEMBERS = "members"
VOLUMES_CSV = "volumes.csv"
PREDICTION_JSON = "prediction.json"
PREVIEW_PNG = "preview.png"
# Pictures that commands put beside label maps; no label maps themselves.
PICTURES = (PREVIEW_PNG, STEP_CURVES_PNG)
SAMPLES_PNG = "samples.png"
SAMPLING_JSON = "sampling.json"
MEMORISATION_JSON = "memorisation.json"
REPRODUCTION_JSON = "reproduction.json"
REPRODUCTION_MD = "reproduction.md"

_DATASET_FOLDER = re.compile(r"Dataset(\d{3,})_(.+)")


@dataclass(frozen=True)
class Workspace:
    """The one folder that holds `raw/`, `preprocessed/` and `results/`."""

    root: Path

    @property
    def raw(self) -> Path:
        """Dataset folders."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """Fingerprints, plans and preprocessed stores, one folder a dataset."""
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        """Run folders, one folder a dataset."""
        return self.root / "results"

    def raw_folders(self) -> list[Path]:
        """Return the folders in which a dataset is looked up: ours first, then `$nnUNet_raw` when it is set."""
        foreign = os.environ.get("nnUNet_raw")  # noqa: SIM112 (nnU-Net's own spelling)
        return [self.raw, *([Path(foreign)] if foreign else [])]

    def plans_file(self, dataset_folder_name: str, plans_name: str = PLANS_NAME) -> Path:
        """Return the plan's path: `preprocessed/DATASET/plans.yaml`."""
        return self.preprocessed / dataset_folder_name / f"{plans_name}.yaml"

    def store_folder(self, dataset_folder_name: str, plans_name: str, config: str) -> Path:
        """Return the preprocessed store's folder: `preprocessed/DATASET/plans_3d/`."""
        return self.preprocessed / dataset_folder_name / f"{plans_name}_{config}"


def best_of(sampler: str) -> str:
    """Return the name of the weights that are best with a sampler that is not the model's own."""
    return f"{BEST}-{sampler}"


def open_workspace(option: Path | None) -> Workspace:
    """Return `--workspace`, else `$MSD_WORKSPACE`, else `./msd_workspace` (nothing is created here)."""
    return Workspace(Path(option or os.environ.get("MSD_WORKSPACE") or "msd_workspace").expanduser().resolve())


def dataset_folder_name(dataset_id: int, name: str) -> str:
    """Return nnU-Net's folder name, for example `Dataset004_Hippocampus`.

    Raises:
        UsageError: the id is out of range or the name has characters that shells and nnU-Net stumble over.
    """
    if not 1 <= dataset_id <= 999:
        raise UsageError(f"dataset id {dataset_id} is out of range", where="--dataset", fix="choose 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UsageError(f"dataset name '{name}'", where="--name", fix="use letters, digits, '-' and '_' only")
    return f"Dataset{dataset_id:03d}_{name}"


def new_dataset_folder(workspace: Workspace, dataset_id: int, name: str) -> Path:
    """Return where a dataset of this id and name belongs; it may be there already.

    Raises:
        UsageError: as `dataset_folder_name`, or the workspace has another dataset of this id.
    """
    folder = workspace.raw / dataset_folder_name(dataset_id, name)
    others = [other.name for other in sorted(workspace.raw.glob(f"Dataset{dataset_id:03d}_*")) if other != folder]
    if others:
        raise UsageError(
            f"id {dataset_id} is taken by {others[0]}", where="--dataset", fix="choose another id, or give its name"
        )
    return folder


def find_dataset(reference: str, workspace: Workspace) -> Path:
    """Return the folder of a dataset given as `4`, `004`, `Dataset004_Hippocampus`, `Hippocampus` or a path.

    Raises:
        UsageError: nothing or more than one thing is called so.
    """
    as_path = Path(reference).expanduser()
    if (as_path / DATASET_JSON).is_file():
        return as_path.resolve()
    known: dict[str, Path] = {}
    for folder in workspace.raw_folders():
        if folder.is_dir():
            for child in sorted(folder.iterdir()):
                if _DATASET_FOLDER.fullmatch(child.name) and child.is_dir():
                    known.setdefault(child.name, child)
    matches = [path for name, path in known.items() if _is_called(name, reference)]
    if len(matches) == 1:
        return matches[0].resolve()
    if matches:
        raise UsageError(
            f"'{reference}' names {len(matches)} datasets: {', '.join(m.name for m in matches)}",
            fix="give the full name",
        )
    raise UsageError(
        f"no dataset '{reference}'",
        where=", ".join(str(folder) for folder in workspace.raw_folders()),
        fix=f"{did_you_mean(reference, known)}; or give a path, or run `msd convert`, or set --workspace",
    )


def _is_called(folder_name: str, reference: str) -> bool:
    match = _DATASET_FOLDER.fullmatch(folder_name)
    if match is None:
        return False
    number, name = match.groups()
    same_number = reference.isdigit() and int(reference) == int(number)
    return reference in (folder_name, name) or same_number
