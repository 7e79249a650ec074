"""Measure a whole dataset in parallel, case by case only where files changed."""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, Part
from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint, Fingerprint, IntensityStatistics, write_fingerprint
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.errors import InputDataError, reading_error
from medsegdiff_cli.fingerprinting.intensities import pooled_statistics
from medsegdiff_cli.fingerprinting.measure import digest_of_case, measure_case, median_relative_size
from medsegdiff_cli.workers import in_processes

CASES_FOLDER = "fingerprint_cases"
# imagesTs is never opened: nothing of a test case may reach a plan.
PARTS: tuple[Part, ...] = ("Tr", "Un")
_SAMPLES = ("foreground", "mask", "whole")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a worker needs to measure one case, or to see that it is known already.

    Attributes:
        record: file that keeps the case's fingerprint and samples.
    """

    files: CaseFiles
    part: Part
    n_channels: int
    scheme: LabelScheme
    record: Path


def extract_fingerprint(
    dataset: DatasetFolder,
    cache: Path,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprint:
    """Measure the training and unlabelled cases; test images are not read.

    A case is read again only when its files or the labels' meaning changed. The result depends on nothing but the
    files: neither on the number of workers nor on what was cached.

    Args:
        cache: the fingerprint's file; the records of single cases lie in a folder beside it.
        workers: processes; 0 measures in this one.
        progress: called with (done, total).

    Raises:
        InputDataError: the dataset is empty, or some cases cannot be used (all of them are listed).
        ResourceError: a worker was killed or stands still.
    """
    jobs = _jobs(dataset, cache)
    cases: dict[Path, CaseFingerprint] = {}
    problems: dict[Path, str] = {}
    for done, (job, outcome) in enumerate(_run(jobs, workers), start=1):
        if isinstance(outcome, CaseFingerprint):
            cases[job.record] = outcome
        else:
            problems[job.record] = f"images{job.part}/{job.files.case}: {outcome}"
        if progress:
            progress(done, len(jobs))
    if problems:
        raise _all_problems([problems[key] for key in sorted(problems)], len(jobs), dataset)
    ordered = {job.record: cases[job.record] for job in jobs}
    _check_alike(list(ordered.values()), dataset)
    fingerprint = _pool(dataset, ordered)
    write_fingerprint(cache, fingerprint)
    for path in (cache.parent / CASES_FOLDER).rglob("*.npz"):
        if path not in ordered and path.name[0] != ".":  # hidden ones belong to whoever is writing
            path.unlink(missing_ok=True)
    return fingerprint


def _jobs(dataset: DatasetFolder, cache: Path) -> list[_Job]:
    scheme = dataset.label_scheme()
    jobs = [
        _Job(
            files=files,
            part=part,
            n_channels=len(dataset.info.channel_names),
            scheme=scheme,
            record=cache.parent / CASES_FOLDER / part / f"{files.case}.npz",
        )
        for part in PARTS
        for files in dataset.cases(part)
    ]
    if not jobs:
        raise InputDataError(
            f"no image named CASE_0000{dataset.info.file_ending} in imagesTr or imagesUn",
            where=str(dataset.path),
            fix="check `file_ending` in dataset.json and the file names (`msd check`)",
        )
    return jobs


def _run(jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, CaseFingerprint | InputDataError]]:
    if workers <= 0 or len(jobs) == 1:
        for job in jobs:
            yield job, _measure_or_reuse(job)
        return
    for job, future in in_processes(_measure_or_reuse, jobs, workers, name=_name_of, kind="measuring"):
        yield job, future.result()


def _name_of(job: _Job) -> str:
    return job.files.case


def _measure_or_reuse(job: _Job) -> CaseFingerprint | InputDataError:
    """Return a case's fingerprint and leave its record on disk; a user's error is returned, not raised."""
    try:
        digest = digest_of_case(job.files, job.scheme)
        known = _read_record(job.record)
        if known is not None and known.digest == digest:
            return known
        measured = measure_case(job.files, job.part, job.n_channels, job.scheme, digest)
    except OSError as error:
        problem = reading_error(error, f"case {job.files.case}", fix="check path and rights")
        if isinstance(problem, InputDataError):
            return problem
        raise problem from error
    except InputDataError as error:
        return error
    text = measured.fingerprint.model_dump_json().encode()
    buffer = io.BytesIO()
    samples = {kind: getattr(measured, kind) for kind in _SAMPLES}
    np.savez(buffer, fingerprint=np.frombuffer(text, np.uint8), **samples)
    atomic.write_bytes(job.record, buffer.getvalue())
    return measured.fingerprint


def _read_record(path: Path) -> CaseFingerprint | None:
    """Return what was measured before; a record that cannot be read is as good as none."""
    if not path.is_file():
        return None
    try:
        # The stream is opened here, since np.load leaves it open when the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return CaseFingerprint.model_validate_json(content["fingerprint"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _all_problems(problems: list[str], n_cases: int, dataset: DatasetFolder) -> InputDataError:
    indented = (problem.replace("\n", "\n    ") for problem in problems)
    listing = "".join(f"\n  {problem}" for problem in indented)
    return InputDataError(
        f"{len(problems)} of {n_cases} cases cannot be used:{listing}",
        where=str(dataset.path),
        fix="mend or remove these cases; `msd check` lists every problem of every case",
    )


def _check_alike(cases: list[CaseFingerprint], dataset: DatasetFolder) -> None:
    """Refuse a mixture of photographs and volumes: no grid would fit both."""
    example = {len(case.shape_voxels): case.case for case in cases}
    if len(example) > 1:
        listed = ", ".join(f"'{case}' has {n} axes" for n, case in sorted(example.items()))
        raise InputDataError(
            f"2D and 3D images are mixed: {listed}", where=str(dataset.path), fix="make two datasets of them"
        )


def _pool(dataset: DatasetFolder, cases: Mapping[Path, CaseFingerprint]) -> Fingerprint:
    channels = sorted(dataset.info.channel_names.items(), key=lambda item: int(item[0]))
    training = [case for case in cases.values() if case.part == "Tr"]
    return Fingerprint(
        dataset=dataset.name,
        channel_names=tuple(name for _, name in channels),
        class_names=dataset.label_scheme().class_names,
        cases=tuple(cases.values()),
        foreground_intensity=_pooled(list(cases), "foreground"),
        mask_intensity=_pooled(list(cases), "mask"),
        whole_intensity=_with_exact_range(_pooled(list(cases), "whole"), list(cases.values())),
        median_relative_size_after_cropping=median_relative_size(training or list(cases.values())),
    )


def _pooled(records: list[Path], kind: str) -> tuple[IntensityStatistics, ...]:
    samples = []
    for path in records:
        with np.load(path, allow_pickle=False) as content:
            samples.append(content[kind])
    return pooled_statistics(samples)


def _with_exact_range(
    pooled: tuple[IntensityStatistics, ...], cases: list[CaseFingerprint]
) -> tuple[IntensityStatistics, ...]:
    """Replace the samples' extremes by those of all voxels, since predictions are compared with that range."""
    exact = []
    for channel, statistics in enumerate(pooled):
        low = min(case.intensity[channel].min for case in cases)
        high = max(case.intensity[channel].max for case in cases)
        exact.append(statistics.model_copy(update={"min": low, "max": high}))
    return tuple(exact)
