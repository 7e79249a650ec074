"""Batches of a stage from a torch DataLoader over explicit sample numbers.

There is no loader state: step k is the same whether training started at 0 or at k, with any number of workers, and the
ranks' batches together are the global batch of one rank.
"""

import contextlib
import itertools
import math
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.dataset import PatchDataset, PatchSettings, Sample
from medsegdiff_cli.batching.handing_over import PipedBatch, can_share
from medsegdiff_cli.errors import InputDataError, MsdError, ResourceError, UsageError
from medsegdiff_cli.workers import (
    Watch,
    kill,
    leave_interrupts_to_the_parent,
    listed,
    standstill_error,
    started_since,
)

_PREFETCHED_BATCHES = 2
_NAMED_CASES = 10


def make_batches(
    store: PreprocessedStore,
    cases: Sequence[str],
    *,
    scheme: LabelScheme,
    patch_size: tuple[int, ...],
    batch_size: int,
    seed: int,
    augmentation: AugmentationSettings,
    mirror_axes: tuple[int, ...] = (),
    foreground_share: float = 0.0,
    drop_empty_slices: bool = False,
    slices_2d: bool = False,
    start_step: int = 0,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    supervision: Literal["none", "partial", "full"] = "full",
    views: int = 1,
    aligned: bool = False,
    hidden_labels: Collection[str] = (),
) -> Iterator[Batch]:
    """Return the batches of the steps `start_step` ... `steps - 1`.

    Args:
        batch_size: patches of a step over all ranks.
        mirror_axes: axes of the plan (of the 3D grid where 2D patches are cut from slices).
        foreground_share, drop_empty_slices: ignored without supervision, which must not look at labels.
        steps: number of the stage's steps, counted from 0 whatever `start_step` is.
        workers: processes that make batches ahead; 0 makes them here.
        hidden_labels: cases that count as unlabelled under partial supervision.

    Raises:
        UsageError: more ranks than patches in a batch, or a rank with one patch alone whose views are to be compared
            with others'.
        InputDataError: no case, or a case without the label that full supervision needs.
        ResourceError: a worker died (noticed within 5 s) or stands still; the cases it may have been reading are named.
    """
    if not cases:
        raise InputDataError("there is no case to train on", where=str(store.folder), fix="check split and dataset")
    least = world_size * (2 if views > 1 else 1)  # views are compared with those of other patches
    if batch_size < least:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {world_size} processes"
            + (", each of which compares patches" if views > 1 else ""),
            where="--set training.batch_size",
            fix=f"use a batch size of at least {least}" + (", or fewer processes" if world_size > 1 else ""),
        )
    sees_labels = supervision != "none"
    settings = PatchSettings(
        patch_size=tuple(patch_size),
        batch_size=batch_size,
        seed=seed,
        augmentation=augmentation,
        mirror_axes=tuple(axis - 1 for axis in mirror_axes if axis > 0) if slices_2d else tuple(mirror_axes),
        foreground_share=foreground_share if sees_labels else 0.0,
        drop_empty_slices=drop_empty_slices and sees_labels,
        slices_2d=slices_2d,
        supervision=supervision,
        views=views,
        aligned=aligned,
        hidden_labels=frozenset(hidden_labels),
    )
    dataset = PatchDataset(store, cases, scheme, settings)
    numbers = _SampleNumbers(start_step, steps, batch_size, rank, world_size)

    def bytes_of_batch() -> int:
        a_voxel = 4 * store.n_channels(cases[0]) * views + (8 + len(scheme.class_names) if sees_labels else 0)
        return batch_size * math.prod(patch_size) * a_voxel

    return _batches(dataset, numbers, workers, bytes_of_batch)


class _SampleNumbers(Sampler[list[int]]):
    """The sample numbers of one rank, step by step: every `world_size`-th patch of the global batch."""

    def __init__(self, start_step: int, steps: int, batch_size: int, rank: int, world_size: int) -> None:
        self._steps = range(start_step, steps)
        self._batch_size = batch_size
        self._positions = range(rank, batch_size, world_size)

    def __len__(self) -> int:
        return len(self._steps)

    def of(self, index: int) -> list[int]:
        """Return the numbers of the `index`-th batch that is delivered."""
        return [self._steps[index] * self._batch_size + position for position in self._positions]

    def __iter__(self) -> Iterator[list[int]]:
        return (self.of(index) for index in range(len(self)))


def _batches(
    dataset: PatchDataset, numbers: _SampleNumbers, workers: int, bytes_of_batch: Callable[[], int]
) -> Iterator[Batch]:
    in_processes = workers > 0
    through_pipes = in_processes and not can_share(bytes_of_batch(), workers * _PREFETCHED_BATCHES)
    # No timeout: with one, torch looks for dead workers (unless they are direct children) only when it has passed.
    loader: DataLoader[Sample | MsdError] = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate_for_a_pipe if through_pipes else _collate,
        prefetch_factor=_PREFETCHED_BATCHES if in_processes else None,
        multiprocessing_context=_process_context() if in_processes else None,
        worker_init_fn=leave_interrupts_to_the_parent if in_processes else None,
    )
    before = multiprocessing.active_children()
    iterator: Iterator[Batch | PipedBatch | MsdError] = iter(loader)
    processes = started_since(before) if in_processes else []
    watch = Watch(processes) if in_processes else None
    try:
        for delivered in itertools.count():
            try:
                with contextlib.nullcontext() if watch is None else watch.waiting():
                    batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as problem:
                if watch is not None and watch.found_standstill:
                    cases = _cases_ahead(dataset, numbers, delivered, workers)
                    raise standstill_error("batch-making", cases) from problem
                # Errors inside of a worker keep their kind; these are about the workers themselves.
                if isinstance(problem, RuntimeError) and "DataLoader" not in str(problem):
                    raise
                raise _worker_died(dataset, numbers, delivered, workers, problem) from problem
            if isinstance(batch, MsdError):
                raise batch
            yield batch.in_tensors() if isinstance(batch, PipedBatch) else batch
    finally:
        if watch is not None:
            watch.end()
        del iterator  # torch asks its workers to end; one that is stopped does not hear it
        kill(processes)


class _ErrorsAsSamples(Dataset[Sample | MsdError]):
    """Hands a user's error over like a sample: torch would wrap an exception of a worker into its traceback."""

    def __init__(self, dataset: PatchDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, number: int) -> Sample | MsdError:
        try:
            return self._dataset[number]
        except MsdError as error:
            return error


def _process_context() -> multiprocessing.context.BaseContext:
    """Return a way to start processes that copies no threads; a fork server imports torch once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PatchDataset.__module__])
    return context


def _worker_died(
    dataset: PatchDataset, numbers: _SampleNumbers, delivered: int, workers: int, problem: Exception
) -> ResourceError:
    reason = (str(problem) or repr(problem)).splitlines()[0]
    return ResourceError(
        f"a process that prepares batches died ({reason})",
        where=f"it was reading one of: {listed(_cases_ahead(dataset, numbers, delivered, workers), _NAMED_CASES)}",
        fix="most often memory or /dev/shm is full: use fewer --workers (0 always works), then run the command again",
    )


def _cases_ahead(dataset: PatchDataset, numbers: _SampleNumbers, delivered: int, workers: int) -> list[str]:
    """Return the cases of the batches that workers may have been making."""
    ahead = range(delivered, min(delivered + workers * _PREFETCHED_BATCHES, len(numbers)))
    return sorted({dataset.case_of(number) for index in ahead for number in numbers.of(index)})


def _collate_for_a_pipe(outcomes: list[Sample | MsdError]) -> PipedBatch | MsdError:
    batch = _collate(outcomes)
    return batch if isinstance(batch, MsdError) else PipedBatch.of(batch)


def _collate(outcomes: list[Sample | MsdError]) -> Batch | MsdError:
    """Return the batch, or the first error among its samples."""
    samples = []
    for outcome in outcomes:
        if isinstance(outcome, MsdError):
            return outcome
        samples.append(outcome)
    labels = [sample.label for sample in samples if sample.label is not None]
    valid = [sample.valid for sample in samples if sample.valid is not None]

    def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays))

    views = [stacked(images) for images in zip(*(sample.images for sample in samples), strict=True)]
    return Batch(
        image=views[0],
        label=stacked(labels) if labels else None,
        valid=stacked(valid) if valid else None,
        case_ids=tuple(sample.case for sample in samples),
        positions=torch.tensor([sample.position for sample in samples], dtype=torch.int64),
        views=tuple(views[1:]),
    )
