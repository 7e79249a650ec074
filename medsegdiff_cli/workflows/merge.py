"""`msd predict --merge`: the folders of shards become one prediction folder."""

from collections.abc import Sequence
from pathlib import Path

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK
from medsegdiff_cli.prediction.merging import find_finished, require_all, take_finished
from medsegdiff_cli.prediction.predictor import PredictionReport
from medsegdiff_cli.prediction.volumes import write_volumes
from medsegdiff_cli.workflows.predict import PreparedPrediction
from medsegdiff_cli.workflows.prediction_info import write_info


def run_merge(prepared: PreparedPrediction, folders: Sequence[Path]) -> PredictionReport:
    """Bring what the shards in `folders` have finished into the output; nothing is predicted.

    Raises:
        UsageError: only a part of the cases is asked for, or another process writes to the output.
        Others: see `prediction.merging`.
    """
    job = prepared.job
    if len(prepared.cases) < len(prepared.inputs.cases):
        raise UsageError("--merge is for all cases", where="--num-shards", fix="leave --num-shards and --shard-id out")
    finished, report = find_finished(job, prepared.cases, folders), PredictionReport()
    if finished:
        with locked(job.output / LOCK):
            write_info(job)
            try:
                report = take_finished(job, finished)
            finally:
                write_volumes(job.output)
    require_all(prepared.cases, finished, folders)
    return report
