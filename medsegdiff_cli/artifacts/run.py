"""Run: one training of one method on one fold, marked by `run.json` in its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.paths import FOLD_PREFIX, RUN_JSON


class StageRecord(StrictModel):
    """Progress of a stage."""

    name: str
    status: Literal["planned", "running", "finished"] = "planned"
    steps_done: int = 0
    steps: int = 0


class RunRecord(StrictModel):
    """Content of `run.json`.

    Attributes:
        fold: "0", "1", ... or "all".
        train_cases, val_cases: cases trained on (of labelled ones those that `--cases` leaves), and the fold's
            validation cases.
        hidden_labels: of `train_cases`, those that `--cases` leaves to a pretraining as images without labels.
        unlabelled_test_overlap: the dataset's word, where this run or the one it starts from saw unlabelled images;
            printed beside every score when "allowed".
        validation_labels_used_for_selection: how many validation labels chose the weights.
        parent: run that `--from` took weights from, and its digest.
        window_batch, precision: measured or chosen once, then reused so that bytes are equal.
    """

    schema_version: int = 1
    msd_version: str
    method: str
    dataset: str
    dataset_path: str
    config: Literal["2d", "3d"]
    fold: str
    seed: int
    plan_digest: str
    recipe_digest: str
    train_cases: tuple[str, ...]
    val_cases: tuple[str, ...]
    hidden_labels: tuple[str, ...] = ()
    unlabelled_test_overlap: str = "refused"
    validation_labels_used_for_selection: int = 0
    parent: dict[str, str] = Field(default_factory=dict)
    precision: str = "float32"
    stages: tuple[StageRecord, ...] = ()
    command: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    weights_digest: str = ""

    @property
    def is_finished(self) -> bool:
        """True when every stage is."""
        return bool(self.stages) and all(stage.status == "finished" for stage in self.stages)


def run_name(method: str, config: str, parts: Sequence[str] = ()) -> str:
    """Return `METHOD__CONFIG[__PART...]`; a part stands for a setting that differs from the default."""
    for part in parts:
        if "__" in part or "/" in part:
            raise UsageError(f"'{part}' cannot be part of a run's name", fix="leave out '__' and '/'")
    return "__".join([method, config, *parts])


def read_run(folder: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        IntegrityError: the folder is no run, or the file is damaged.
    """
    return validate(RunRecord, read_json(folder / RUN_JSON, IntegrityError), str(folder / RUN_JSON), IntegrityError)


def write_run(folder: Path, record: RunRecord) -> None:
    """Write `run.json` atomically."""
    atomic.write_json(folder / RUN_JSON, record.model_dump(mode="json"))


def find_folds(model: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Return the run folders of MODEL: a fold's folder itself, or the folds found in its parent.

    Args:
        wanted: fold names; empty means all that exist.

    Raises:
        UsageError: there is none, or one that is wanted is missing.
    """
    if (model / RUN_JSON).is_file():
        return [model]
    folders = [path.parent for path in sorted(model.glob(f"{FOLD_PREFIX}*/{RUN_JSON}"))]
    found = {folder.name.removeprefix(FOLD_PREFIX): folder for folder in folders}
    if not found:
        raise UsageError(
            f"'{model}' is no trained model", fix="give a run folder (…/METHOD__CONFIG) or one of its fold_K folders"
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UsageError(f"folds {missing} are not trained", where=str(model), fix=f"trained: {sorted(found)}")
    return [found[name] for name in (wanted or found)]
