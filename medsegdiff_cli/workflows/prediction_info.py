"""`prediction.json`: what a folder of predictions says about itself, and whether a job may go on in it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsegdiff_cli import __version__
from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.artifacts.plan import changed_keys
from medsegdiff_cli.artifacts.postprocessing import as_plain_data
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, read_prediction_info, write_prediction_info
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.paths import DATASET_JSON, PREDICTION_JSON
from medsegdiff_cli.prediction.case_steps import PredictionJob
from medsegdiff_cli.prediction.model import bundles_of
from medsegdiff_cli.workflows.sampling import visited_timesteps


def write_info(job: PredictionJob) -> None:
    """Write `prediction.json`, or check that the folder's own agrees.

    Raises:
        UsageError: the folder holds predictions of other models or settings, and `overwrite` is not set.
    """
    info = info_of(job)
    if (job.output / PREDICTION_JSON).is_file() and not job.overwrite:
        existing = read_prediction_info(job.output)
        if existing.model_digests != info.model_digests:
            raise UsageError(
                f"OUTPUT holds predictions of other models ({', '.join(existing.models)})",
                where=str(job.output),
                fix="choose another OUTPUT, or pass --overwrite",
            )
        changed = [key.partition(".")[2] for key in changed_keys(existing, info) if key.startswith("settings.")]
        if existing.settings and changed:
            raise UsageError(
                f"OUTPUT holds predictions made with other settings ({', '.join(changed)})",
                where=str(job.output),
                fix="choose another OUTPUT, or pass --overwrite",
            )
    write_prediction_info(job.output, info)


def info_of(job: PredictionJob) -> PredictionInfo:
    """Return what `msd evaluate` needs to know about the predictions."""
    first = job.models[0]
    scheme = first.plan.label_scheme()
    dataset = Path(first.run.dataset_path)
    source_values = open_dataset(dataset).info.source_label_values if (dataset / DATASET_JSON).is_file() else {}
    overlap = any(model.run.unlabelled_test_overlap == "allowed" for model in job.models)
    return PredictionInfo(
        dataset=first.run.dataset,
        dataset_path=first.run.dataset_path,
        file_ending=first.plan.file_ending,
        classes=scheme.file_values(),
        ignore_value=scheme.ignore_value,
        source_label_values=source_values,
        models=tuple(f"{model.folder.parent.name}/{model.folder.name}" for model in job.models),
        model_digests=tuple(model.digest for model in job.models),
        bundles=bundles_of(job.models),
        method=first.run.method,
        config=first.run.config,
        msd_version=__version__,
        command=job.command,
        seed=job.inference.seed,
        settings=_settings_of(job),
        visited_timesteps=visited_timesteps(job.models, job.inference.sampling),
        draws=job.inference.draws,
        train_cases=len(first.run.train_cases),
        trained_on=tuple(sorted({case for model in job.models for case in model.run.train_cases})),
        validation_labels_used_for_selection=first.run.validation_labels_used_for_selection,
        notes=("test images were seen, without labels, in pretraining",) if overlap else (),
    )


def _settings_of(job: PredictionJob) -> dict[str, Any]:
    """Return what all cases of a folder share."""
    settings = {**asdict(job.inference), "postprocessing": as_plain_data(job.wanted.postprocessing)}
    if job.start is None:
        return settings
    if job.start.folder is None:
        return {**settings, "start_from": [model.digest for model in job.start.models]}
    return {**settings, "start_from": list(read_prediction_info(job.start.folder).model_digests)}
