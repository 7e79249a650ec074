"""Batches: what a step sees depends on its number, and on nothing else."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batching_phantoms import TWO_CLASSES, write_case

from medsegdiff_cli import workers as worker_processes
from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore, StoredCase
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching import handing_over
from medsegdiff_cli.batching.loader import make_batches
from medsegdiff_cli.errors import InputDataError, ResourceError, UsageError

PLAIN = AugmentationSettings(
    p_rotation=0,
    p_scaling=0,
    p_noise=0,
    p_blur=0,
    p_brightness=0,
    p_contrast=0,
    p_low_resolution=0,
    p_gamma=0,
    p_gamma_inverted=0,
    mirror=False,
)


def batches_of(store: PreprocessedStore, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "scheme": TWO_CLASSES,
        "patch_size": (8, 8, 8),
        "batch_size": 4,
        "seed": 5,
        "augmentation": AugmentationSettings(),
        "mirror_axes": (0, 1, 2),
        "foreground_share": 0.5,
        "steps": 3,
        **changes,
    }
    cases = arguments.pop("cases", store.cases())
    return list(make_batches(store, cases, **arguments))


def items_of(batch: Batch) -> dict[int, tuple[str, bytes, bytes]]:
    label = batch.label if batch.label is not None else batch.image
    return {
        int(position): (batch.case_ids[i], batch.image[i].numpy().tobytes(), label[i].numpy().tobytes())
        for i, position in enumerate(batch.positions)
    }


def test_a_resumed_training_sees_the_batches_of_an_undisturbed_one(
    make_store: Callable[..., PreprocessedStore],
) -> None:
    store = make_store()
    undisturbed = [items_of(batch) for batch in batches_of(store)]
    resumed = [items_of(batch) for batch in batches_of(store, start_step=1)]
    assert resumed == undisturbed[1:]
    assert undisturbed[0] != undisturbed[1]
    assert batches_of(store, start_step=3) == []


def test_worker_processes_make_the_same_batches(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store()
    here = [items_of(batch) for batch in batches_of(store)]
    elsewhere = [items_of(batch) for batch in batches_of(store, workers=2)]
    assert elsewhere == here


def test_the_ranks_together_have_the_global_batch(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store()
    whole = [items_of(batch) for batch in batches_of(store, batch_size=5)]
    shares = [
        [items_of(batch) for batch in batches_of(store, batch_size=5, rank=rank, world_size=2)] for rank in (0, 1)
    ]
    assert [{**first, **second} for first, second in zip(*shares, strict=True)] == whole
    assert [len(share[0]) for share in shares] == [3, 2]


def test_the_seed_and_the_views_change_the_numbers(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store()
    (batch,) = batches_of(store, steps=1, views=2)
    (other,) = batches_of(store, steps=1, seed=6)
    (single,) = batches_of(store, steps=1)
    assert torch.equal(batch.image, single.image)
    assert not torch.equal(single.image, other.image)
    assert len(batch.views) == 1
    assert batch.views[0].shape == batch.image.shape
    assert not torch.equal(batch.views[0], batch.image)


def test_without_augmentation_a_patch_is_a_plain_crop(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(n=1)
    stored = store.read("case_0")
    for batch in batches_of(store, augmentation=PLAIN):
        assert batch.label is not None
        for image, label in zip(batch.image.numpy(), batch.label.numpy(), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(stored.image, (8, 8, 8), axis=(1, 2, 3))
            places = np.argwhere(windows[0, ..., 0, 0, 0] == image[0, 0, 0, 0])
            z, y, x = next(p for p in places if np.array_equal(windows[(slice(None), *p)], image))
            assert stored.label is not None
            assert np.array_equal(stored.label[z : z + 8, y : y + 8, x : x + 8], label)


def test_the_last_half_of_each_batch_holds_foreground(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(shape=(40, 40, 40), n=2)
    labels = [batch.label for batch in batches_of(store, augmentation=PLAIN, steps=8, patch_size=(4, 4, 4))]
    forced = [bool(label[i].any()) for label in labels if label is not None for i in (2, 3)]
    free = [bool(label[i].any()) for label in labels if label is not None for i in (0, 1)]
    assert all(forced)
    assert not all(free)


def test_a_grid_smaller_than_the_patch_is_padded_with_background(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(shape=(12, 20, 16), n=1)
    (batch,) = batches_of(store, augmentation=PLAIN, patch_size=(16, 24, 16), steps=1, batch_size=1)
    stored = store.read("case_0")
    assert batch.label is not None
    assert np.array_equal(batch.image[0, :, 2:14, 2:22].numpy(), stored.image)
    assert np.array_equal(batch.label[0, 2:14, 2:22].numpy(), stored.label)
    inside = np.zeros((16, 24, 16), bool)
    inside[2:14, 2:22] = True
    assert not batch.image[0, :, ~inside].any()
    assert not batch.label[0, ~inside].any()
    assert batch.valid is None


def test_slices_of_volumes_are_2d_patches(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store()
    found = batches_of(store, patch_size=(8, 8), slices_2d=True, drop_empty_slices=True, augmentation=PLAIN)
    stored = {case: store.read(case) for case in store.cases()}
    for batch in found:
        assert batch.image.shape == (4, 2, 8, 8)
        assert batch.label is not None
        assert batch.label.shape == (4, 8, 8)
        for case, image in zip(batch.case_ids, batch.image.numpy(), strict=True):
            planes = [z for z, plane in enumerate(stored[case].image[0]) if np.isin(image[0], plane).all()]
            assert planes
            assert planes[0] in stored[case].properties["foreground_slices"]


def test_mirroring_axes_of_the_plan_become_those_of_the_slice(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(n=1, shape=(1, 6, 6))
    mirror = PLAIN.model_copy(update={"mirror": True})
    found = batches_of(
        store, patch_size=(6, 6), slices_2d=True, augmentation=mirror, mirror_axes=(0, 2), steps=6, foreground_share=0
    )
    plane = store.read("case_0").image[:, 0].astype(np.float32)
    seen = {image.numpy().tobytes() for batch in found for image in batch.image}
    assert seen == {plane.tobytes(), plane[:, :, ::-1].tobytes()}


def test_exclusive_labels_with_ignored_voxels_are_indices_and_a_valid_mask(tmp_path: Path) -> None:
    store = PreprocessedStore(tmp_path)
    label = np.array([[0, 1], [2, 3]], np.uint8)
    write_case(store, "a", label, np.ones((1, 2, 2), np.float32))
    scheme = LabelScheme(class_names=("background", "a", "b"), values=(0, 10, 20), ignore_value=99)
    (batch,) = batches_of(store, scheme=scheme, patch_size=(2, 2), batch_size=1, steps=1, augmentation=PLAIN)
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    assert batch.label[0].tolist() == [[0, 1], [2, 0]]
    assert batch.valid is not None
    assert batch.valid[0].tolist() == [[True, True], [True, False]]


def test_regions_are_overlapping_masks(tmp_path: Path) -> None:
    store = PreprocessedStore(tmp_path)
    label = np.array([[0, 1], [2, 3]], np.uint8)
    write_case(store, "a", label, np.ones((1, 2, 2), np.float32), {0: (1, 2), 1: (2,)})
    scheme = LabelScheme(
        class_names=("whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)), region_values=(1, 2), ignore_value=3
    )
    (batch,) = batches_of(store, scheme=scheme, patch_size=(2, 2), batch_size=1, steps=1, augmentation=PLAIN)
    assert batch.label is not None
    assert batch.label.dtype == torch.uint8
    assert batch.label[0].tolist() == [[[0, 1], [1, 0]], [[0, 0], [1, 0]]]
    assert batch.valid is not None
    assert batch.valid[0].tolist() == [[True, True], [True, False]]


def test_an_unsupervised_stage_never_looks_at_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(1, 12, 12)).astype(np.float32), np.zeros((12, 12), np.uint8)
    label[3, 3] = 1
    found = []
    for name, given in (("with", label), ("without", None)):
        store = PreprocessedStore(tmp_path / name)
        write_case(store, "a", given, image)
        found.append(batches_of(store, patch_size=(4, 4), supervision="none", mirror_axes=(0, 1)))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first.image, second.image)
        assert first.label is None
        assert first.valid is None


def test_partial_supervision_marks_unlabelled_images_as_not_annotated(
    make_store: Callable[..., PreprocessedStore],
) -> None:
    found = batches_of(make_store(n=2, unlabelled=2), supervision="partial", steps=4)
    for batch in found:
        assert batch.valid is not None
        annotated = [bool(v.any()) for v in batch.valid]
        assert annotated == [not case.startswith("unlabelled") for case in batch.case_ids]
    assert {case.split("_")[0] for batch in found for case in batch.case_ids} == {"case", "unlabelled"}


def test_a_hidden_label_is_as_good_as_none(tmp_path: Path) -> None:
    image, label = np.random.default_rng(0).normal(size=(1, 6, 8, 8)).astype(np.float16), np.zeros((6, 8, 8), np.uint8)
    label[4, 3, 3] = 1
    found = []
    for name, given in (("with", label), ("without", None)):
        store = PreprocessedStore(tmp_path / name)
        write_case(store, "a", given, image)
        kind = {"patch_size": (4, 4), "slices_2d": True, "drop_empty_slices": True, "foreground_share": 1.0}
        found.append(batches_of(store, supervision="partial", hidden_labels=["a"], **kind))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.label, second.label)
        assert not first.valid.any()
        assert not second.valid.any()


def test_what_cannot_be_trained_on_is_refused(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(n=0, unlabelled=1)
    with pytest.raises(InputDataError, match=r"unlabelled_0.*no label"):
        batches_of(store)
    with pytest.raises(InputDataError, match="no case"):
        batches_of(store, cases=[])
    with pytest.raises(UsageError, match="batch of 1"):
        batches_of(store, batch_size=1, world_size=2)
    (store.folder / "unlabelled_0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputDataError, match=r"unlabelled_0.*cannot be read"):
        batches_of(store, supervision="none")


def test_an_error_inside_of_a_worker_reads_as_it_would_without_one(
    make_store: Callable[..., PreprocessedStore],
) -> None:
    store, texts = make_store(n=1), []
    (store.folder / "case_0.npy").write_bytes(b"\x93NUMPY")
    for workers in (0, 1):
        with pytest.raises(InputDataError) as caught:
            batches_of(store, workers=workers)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "to do: run `msd preprocess` again" in texts[1]


@pytest.mark.fault("F63")
def test_where_shared_memory_is_tiny_the_same_batches_come_through_pipes(
    make_store: Callable[..., PreprocessedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(n=2, unlabelled=1)
    here = [items_of(batch) for batch in batches_of(store, supervision="partial", views=2)]
    monkeypatch.setattr(handing_over.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    found = batches_of(store, workers=1, supervision="partial", views=2)
    assert [items_of(batch) for batch in found] == here
    tensors = [tensor for b in found for tensor in (b.image, b.label, b.valid, b.positions, *b.views)]
    assert not any(tensor.is_shared() for tensor in tensors if tensor is not None)
    assert all(len(batch.views) == 1 for batch in found)


@pytest.mark.fault("F62", "F63")
def test_shared_memory_is_used_where_it_and_descriptors_are_ample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_over.shutil, "disk_usage", lambda folder: SimpleNamespace(free=64 << 20))
    monkeypatch.setattr(handing_over, "_most_descriptors", lambda: 1024)
    assert handing_over.can_share(4 << 20, 8)
    assert not handing_over.can_share(5 << 20, 8)
    monkeypatch.setattr(handing_over, "_most_descriptors", lambda: 64)
    assert not handing_over.can_share(1, 2)


class LethalStore(PreprocessedStore):
    """Reading from it ends the process, as the kernel does when memory is full."""

    signal = signal.SIGKILL

    def read(self, case: str, *, with_label: bool = True) -> StoredCase:
        os.kill(os.getpid(), self.signal)
        return super().read(case, with_label=with_label)


class StoppingStore(LethalStore):
    """Reading from it stops the process."""

    signal = signal.SIGSTOP


@pytest.mark.slow
@pytest.mark.fault("F59")
def test_a_worker_that_stands_still_is_ended_and_reported_with_its_cases(
    make_store: Callable[..., PreprocessedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "NO_PROGRESS_S", 1.0)
    store = make_store(n=1)
    with pytest.raises(ResourceError, match=r"batch-making processes stand still[\s\S]*case_0"):
        batches_of(StoppingStore(store.folder), workers=2)
    assert multiprocessing.active_children() == []


@pytest.mark.fault("F58")
def test_a_dead_worker_is_reported_with_its_cases(make_store: Callable[..., PreprocessedStore]) -> None:
    store = make_store(n=1)
    with pytest.raises(ResourceError) as caught:
        batches_of(LethalStore(store.folder), workers=1)
    assert caught.value.exit_code == 4
    assert "case_0" in str(caught.value)
