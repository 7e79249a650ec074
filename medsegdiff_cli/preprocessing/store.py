"""Fill the preprocessed store of one configuration: incrementally, in parallel, one case at a time per worker."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, Part
from medsegdiff_cli.artifacts.fingerprint import Fingerprint
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.diffusion.noise import stream_seed
from medsegdiff_cli.errors import InputDataError, MsdError, PartialFailure, did_you_mean
from medsegdiff_cli.imaging.transform import grid_shape
from medsegdiff_cli.leftovers import remove_leftovers
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK
from medsegdiff_cli.preprocessing.case import CaseJob, Outcome, demands_mask, is_up_to_date, preprocess_case
from medsegdiff_cli.preprocessing.foreground import n_sampled_voxels
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workers import in_processes, listed

# nnU-Net's seed of the foreground sample.
_SEED = 1234
_NAMED_CASES = 20


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What happened to each case.

    Attributes:
        failed: case to reason.
        removed: entries of cases that the dataset no longer has.
    """

    written: tuple[str, ...]
    reused: tuple[str, ...]
    failed: dict[str, str]
    removed: tuple[str, ...] = ()


def preprocess(
    dataset: DatasetFolder,
    plan: Plan,
    config: str | None,
    store: PreprocessedStore,
    *,
    parts: Sequence[Part] = ("Tr", "Un"),
    cases: Collection[str] | None = None,
    workers: int = 0,
    wait: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PreprocessReport:
    """Bring the store up to date; what is current is left alone.

    Args:
        parts: parts of the dataset.
        cases: only these; None takes all.
        workers: processes; 0 works in this one.
        wait: for another process that fills the store, instead of being refused; what is current needs no waiting.
        progress: called with (cases done, cases in all).

    Raises:
        UsageError: another process fills the store.
        InputDataError: masks are missing that the plan needs, names are unknown or not unique, or every case failed.
        PartialFailure: some cases failed; the others are stored.
        ResourceError: memory or disk is full, or a worker was killed or stands still; the cases it was on are named.
    """
    jobs = _jobs(dataset, plan, config, store, parts, cases)
    if wait and cases is not None and all(is_up_to_date(job) for job in jobs):
        return PreprocessReport(written=(), reused=tuple(sorted(job.case for job in jobs)), failed={})
    with locked(store.folder / LOCK, wait=wait):
        remove_leftovers(store.folder, alone=True)
        return _bring_up_to_date(jobs, store, parts, cases, workers, progress)


def _bring_up_to_date(
    jobs: Sequence[CaseJob],
    store: PreprocessedStore,
    parts: Sequence[Part],
    cases: Collection[str] | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> PreprocessReport:
    removed = [] if cases is not None else _remove_departed(store, parts, {job.case for job in jobs})
    reused = {job.case for job in jobs if is_up_to_date(job)}
    todo = [job for job in jobs if job.case not in reused]
    written: set[str] = set()
    failed: dict[str, str] = {}
    for done, (job, outcome) in enumerate(_outcomes(todo, workers), start=len(reused) + 1):
        if isinstance(outcome, MsdError):
            failed[job.case] = str(outcome)
        else:
            (written if outcome == "written" else reused).add(job.case)
        if progress is not None:
            progress(done, len(jobs))
    _raise_for_failures(failed, len(jobs))
    return PreprocessReport(
        written=tuple(sorted(written)), reused=tuple(sorted(reused)), failed=failed, removed=tuple(removed)
    )


def forecast_store_bytes(fingerprint: Fingerprint, plan: Plan, config: str | None) -> int:
    """Return about how many bytes the store of training and unlabelled cases takes on the disk."""
    settings = transform_settings(plan, config)
    n_voxel_bytes = len(settings.channels) * settings.channel_copies * np.dtype(settings.store_dtype).itemsize
    total = 0
    for case in fingerprint.cases:
        if case.part not in ("Tr", "Un"):
            continue
        shape = case.shape_after_crop_voxels if settings.crop == "nonzero" else case.shape_voxels
        grid = grid_shape(shape, case.spacing_mm, settings)
        total += math.prod(grid) * (n_voxel_bytes + bool(case.class_voxels))
        growth = math.prod(grid) / math.prod(shape)
        rows = sum(n_sampled_voxels(round(n * growth)) for n in case.class_voxels.values())
        total += rows * 4 * (1 + len(grid))
    return total


def _jobs(
    dataset: DatasetFolder,
    plan: Plan,
    config: str | None,
    store: PreprocessedStore,
    parts: Sequence[Part],
    cases: Collection[str] | None,
) -> list[CaseJob]:
    settings, scheme = transform_settings(plan, config), plan.label_scheme()
    found = [(part, files) for part in parts for files in dataset.cases(part)]
    names = [files.case for _, files in found]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputDataError(
            f"the same case in two parts of the dataset: {listed(twice)}",
            where=str(dataset.path),
            fix="rename or remove the copies",
        )
    if unknown := sorted(set(cases or ()) - set(names)):
        raise InputDataError(
            f"the dataset has no case {listed(unknown)}", where=str(dataset.path), fix=did_you_mean(unknown[0], names)
        )
    chosen = [(part, files) for part, files in found if cases is None or files.case in cases]
    without_mask = [files.case for _, files in chosen if files.mask is None]
    if demands_mask(settings) and without_mask:
        raise InputDataError(
            f"the plan's normalisation or crop needs masks, which are missing for {listed(without_mask)}",
            where=str(dataset.path),
            fix="put masks into masksTr, masksTs and masksUn, or choose another normalisation and crop in the plan",
        )
    return [
        CaseJob(
            files=files,
            part=part,
            settings=settings,
            scheme=scheme,
            store=store,
            seed=stream_seed(_SEED, "foreground", files.case),
        )
        for part, files in sorted(chosen, key=lambda item: item[1].case)
    ]


def _remove_departed(store: PreprocessedStore, parts: Sequence[Part], present: set[str]) -> list[str]:
    departed = [case for case in store.cases() if case not in present and store.properties(case).get("part") in parts]
    for case in departed:
        store.remove(case)
    return departed


def _outcomes(jobs: Sequence[CaseJob], workers: int) -> Iterator[tuple[CaseJob, Outcome | MsdError]]:
    """Work through the jobs; a case's own errors are yielded, lack of resources is raised."""
    if workers == 0 or not jobs:
        for job in jobs:
            try:
                yield job, preprocess_case(job)
            except InputDataError as problem:
                yield job, problem
        return
    for job, future in in_processes(preprocess_case, jobs, workers, name=attrgetter("case"), kind="preprocessing"):
        yield job, _outcome_of(future)


def _outcome_of(future: "Future[Outcome]") -> Outcome | MsdError:
    try:
        return future.result()
    except InputDataError as problem:
        return problem


def _raise_for_failures(failed: dict[str, str], n_cases: int) -> None:
    if not failed:
        return
    kind = InputDataError if len(failed) == n_cases else PartialFailure
    shown = "\n".join(f"- {reason}" for _, reason in sorted(failed.items())[:_NAMED_CASES])
    more = f"\n- and {len(failed) - _NAMED_CASES} more" if len(failed) > _NAMED_CASES else ""
    raise kind(
        f"{len(failed)} of {n_cases} cases could not be preprocessed:\n{shown}{more}",
        where=listed(sorted(failed)),
        fix="mend or remove these cases (`msd check` lists all problems), then run the same command again",
    )
