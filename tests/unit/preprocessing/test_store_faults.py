"""The store under two processes, after killed ones, and with times of change that say nothing."""

import gzip
import os
import threading

import pytest
from small_store import plan_of

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK
from medsegdiff_cli.preprocessing.store import preprocess


@pytest.mark.fault("F43")
def test_temporary_files_of_killed_writers_are_removed(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    store.folder.mkdir()
    left, others = store.folder / ".0badcafe-1.part.a.npy", store.folder / ".notes"
    for path in (left, others):
        path.write_bytes(b"")
    preprocess(dataset, plan_of(), "3d", store, cases=["a"])
    assert not left.exists()
    assert others.exists()
    assert store.cases() == ["a"]


@pytest.mark.fault("F55")
def test_a_store_that_another_process_fills_is_refused_or_waited_for(
    dataset: DatasetFolder, store: PreprocessedStore
) -> None:
    with locked(store.folder / LOCK), pytest.raises(UsageError, match="is writing here"):
        preprocess(dataset, plan_of(), "3d", store)
    preprocess(dataset, plan_of(), "3d", store, cases=["a", "b"])
    with locked(store.folder / LOCK):  # what is current needs no lock: a second training starts at once
        assert preprocess(dataset, plan_of(), "3d", store, cases=["a"], wait=True).reused == ("a",)
    held = locked(store.folder / LOCK)
    held.__enter__()
    release = threading.Timer(0.3, held.__exit__, (None, None, None))
    release.start()
    assert preprocess(dataset, plan_of(), "3d", store, cases=["c"], wait=True).written == ("c",)
    release.join()


@pytest.mark.fault("F54")
def test_times_of_change_that_are_equal_hide_no_change(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    path = dataset.path / "labelsTr" / "a.nii.gz"
    stored = gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0, mtime=0)
    path.write_bytes(stored)
    os.utime(path, (1, 1))
    preprocess(dataset, plan_of(), "3d", store)
    assert store.properties("a")["class_voxels"]["a"] == 24
    voxels = bytearray(gzip.decompress(stored))
    voxels[-480:] = bytes(480)
    path.write_bytes(gzip.compress(bytes(voxels), compresslevel=0, mtime=0))
    os.utime(path, (1, 1))
    assert path.stat().st_size == len(stored)
    assert preprocess(dataset, plan_of(), "3d", store).written == ("a",)
    assert store.properties("a")["class_voxels"]["a"] == 0
