"""The supervised baseline: softmax or sigmoid on top of the U-Net, nnU-Net's loss below it."""

import pytest
import torch

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.supervised import Supervised, SupervisedSettings

NOISE = NoiseSource([(0,)])


def method(*, exclusive=True, **changes):
    settings = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (), **changes}
    task = Task(n_dims=2, in_channels=1, class_names=("a", "b", "c"), classes_are_exclusive=exclusive)
    return Supervised(task, SupervisedSettings(**settings))


def batch(label):
    return Batch(
        image=torch.zeros(1, 1, 4, 4), label=label, valid=None, case_ids=("x",), positions=torch.zeros(1).long()
    )


@pytest.mark.parametrize(("exclusive", "expected"), [(True, 1 / 3), (False, 1 / 2)])
def test_an_untrained_network_knows_nothing(exclusive, expected):
    # The last layer starts at 0: all logits are 0.
    probabilities = method(exclusive=exclusive).predict(torch.randn(1, 1, 4, 4), NOISE, Sampling())
    torch.testing.assert_close(probabilities, torch.full((1, 1, 3, 4, 4), expected))


def test_the_loss_of_an_untrained_network_is_known():
    # Half of the 16 voxels are class 1, none is class 2; p = 1/3 everywhere.
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    label[:, :2] = 1
    terms = method().loss(batch(label), Supervised.stages[0], NOISE)
    dice = ((2 * 8 / 3) / (16 / 3 + 8) + 0) / 2
    assert terms["dice"].item() == pytest.approx(1 - dice, abs=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(torch.tensor(3.0).log().item())


def test_loss_terms_are_weighted_as_set():
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    plain = method().loss(batch(label), Supervised.stages[0], NOISE)
    weighted = method(dice_weight=0.0, cross_entropy_weight=3.0).loss(batch(label), Supervised.stages[0], NOISE)
    assert weighted["dice"] == 0
    torch.testing.assert_close(weighted["cross_entropy"], 3 * plain["cross_entropy"])


def test_training_without_labels_is_a_fault():
    with pytest.raises(ValueError, match="needs labels"):
        method().loss(batch(None), Supervised.stages[0], NOISE)


def test_the_divisor_is_the_total_stride_per_axis():
    assert method(channel_mult=(1, 1, 2)).divisor == (4, 4)
    assert method(channel_mult=(1, 1, 2), strides=((1, 2), (2, 2))).divisor == (2, 4)
