"""STAPLE against ITK's filters, and by hand where the answer is plain."""

import numpy as np
import pytest
import SimpleITK
import torch

from medsegdiff_cli.inference.fusion import RunningFusion, label_map
from medsegdiff_cli.inference.member_labels import MemberLabels
from medsegdiff_cli.inference.staple import staple


def raters(members, n_labels, shape=(14, 15, 16), seed=0):
    """Return noisy copies (member, *grid) of blocks; each rater errs with a chance of its own."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    for label in range(1, n_labels):
        truth[2 * label : 2 * label + 6, 3:12, 2 + label : 12] = label
    chances = np.linspace(0.02, 0.3, members)
    errs = random.random((members, *shape)) < chances.reshape(-1, 1, 1, 1)
    return truth, np.where(errs, random.integers(0, n_labels, (members, *shape)), truth).astype(np.uint8)


@pytest.mark.parametrize("members", [3, 6])
def test_two_labels_as_itk(members):
    _, maps = raters(members, 2)
    found = staple(torch.from_numpy(maps), 2)
    reference = SimpleITK.STAPLEImageFilter()
    reference.SetForegroundValue(1)
    expected = SimpleITK.GetArrayFromImage(reference.Execute([SimpleITK.GetImageFromArray(one) for one in maps]))
    np.testing.assert_allclose(found.probabilities[1].numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(found.confusion[:, 1, 1].numpy(), reference.GetSensitivity(), atol=2e-4)
    np.testing.assert_allclose(found.confusion[:, 0, 0].numpy(), reference.GetSpecificity(), atol=2e-4)


@pytest.mark.parametrize("n_labels", [3, 4])
def test_many_labels_as_itk(n_labels):
    truth, maps = raters(5, n_labels)
    found = staple(torch.from_numpy(maps), n_labels).probabilities
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.MultiLabelSTAPLE([SimpleITK.GetImageFromArray(one) for one in maps], n_labels)
    )
    top = found.sort(0, descending=True).values
    clear = (top[0] - top[1] > 1e-3).numpy()
    np.testing.assert_array_equal(found.argmax(0).numpy()[clear], expected[clear])
    assert clear.mean() > 0.99
    assert (found.argmax(0).numpy() == truth).mean() > (maps[0] == truth).mean() - 0.01


def test_equal_members_are_certain_and_labels_that_nobody_gives_are_not_found():
    label = torch.tensor([[0, 0, 0], [0, 2, 2]], dtype=torch.uint8)
    found = staple([label, label, label], 4).probabilities
    assert torch.equal(found.argmax(0), label.long())
    assert found.max(0).values.min() > 0.999
    assert found[[1, 3]].max() < 1e-6


def test_two_good_raters_outweigh_three_bad_ones():
    """Three raters who err at random are outvoted by two who agree, where a majority would follow the three."""
    truth, _ = raters(1, 2)
    random = np.random.default_rng(1)
    bad = [np.where(random.random(truth.shape) < 0.45, 1 - truth, truth) for _ in range(3)]
    good = [np.where(random.random(truth.shape) < 0.01, 1 - truth, truth) for _ in range(2)]
    maps = torch.from_numpy(np.stack([*bad, *good]).astype(np.uint8))
    by_weight = staple(maps, 2).probabilities.argmax(0).numpy()
    by_majority = (maps.sum(0) > 2).numpy()
    assert (by_weight == truth).mean() > 0.98 > (by_majority == truth).mean()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_fusion_by_staple_decides_by_its_probabilities(exclusive):
    random = np.random.default_rng(2)
    values = random.random((5, 3, 6, 7)).astype(np.float32)
    fusion = RunningFusion(exclusive=exclusive, keep_variance=False, keep_labels=False, rule="staple")
    for value in values:
        fusion.add(torch.from_numpy(value.copy()))
    maps = [label_map(torch.from_numpy(value), exclusive) for value in values]
    if exclusive:
        expected = staple(maps, 3).probabilities
    else:
        expected = torch.stack([staple([(one >> k) & 1 for one in maps], 2).probabilities[1] for k in range(3)])
    assert torch.equal(fusion.scores, expected)
    torch.testing.assert_close(fusion.mean, torch.from_numpy(values).mean(0))
    assert fusion.agreement() is not None


def test_one_member_is_fused_into_itself():
    fusion = RunningFusion(exclusive=True, keep_variance=False, keep_labels=False, rule="staple")
    probabilities = torch.rand(3, 4, 5)
    fusion.add(probabilities)
    assert torch.equal(fusion.scores, probabilities)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_packed_label_maps_come_back_and_are_small(dtype):
    maps = [torch.randint(0, 5, (6, 7)).to(dtype), torch.zeros(64, 64, 64, dtype=dtype)]
    packed = MemberLabels()
    for one in maps:
        packed.append(one)
    assert len(packed) == 2
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(packed, maps, strict=True))
    assert len(packed._packed[1][0]) < maps[1].nbytes / 100


@pytest.mark.parametrize("exclusive", [True, False])
def test_each_members_voxels_are_counted(exclusive):
    values = torch.rand(4, 3, 5, 6)
    fusion = RunningFusion(exclusive=exclusive, keep_variance=False, keep_labels=True)
    for value in values:
        fusion.add(value.clone())
    masks = [values.argmax(1) == k for k in range(3)] if exclusive else [values[:, k] > 0.5 for k in range(3)]
    assert torch.equal(fusion.member_voxels, torch.stack([mask.flatten(1).sum(1) for mask in masks], 1))
