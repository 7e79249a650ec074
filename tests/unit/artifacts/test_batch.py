"""Batches move to a device whole, and keep their keys on the CPU."""

import pytest
import torch

from medsegdiff_cli.artifacts.batch import Batch


def batch(n_dims, label=None, valid=None):
    image = torch.randn(2, 3, *(4,) * n_dims)
    return Batch(
        image=image, label=label, valid=valid, case_ids=("a", "b"), positions=torch.tensor([4, 1]), views=(image + 1,)
    )


@pytest.mark.parametrize(("n_dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_changes_the_layout_and_no_value(n_dims, layout):
    plain = batch(n_dims)
    moved = plain.to(torch.device("cpu"), channels_last=True)
    assert moved.image.is_contiguous(memory_format=layout)
    assert torch.equal(moved.image, plain.image)


def test_everything_moves_but_the_positions():
    label, valid = torch.zeros(2, 4, 4, dtype=torch.int64), torch.ones(2, 4, 4, dtype=torch.bool)
    moved = batch(2, label, valid).to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.image, moved.label, moved.valid, *moved.views)} == {"meta"}
    assert moved.positions.tolist() == [4, 1]
    assert moved.case_ids == ("a", "b")


def test_what_is_missing_stays_missing():
    moved = batch(2).to(torch.device("cpu"))
    assert moved.label is None
    assert moved.valid is None
