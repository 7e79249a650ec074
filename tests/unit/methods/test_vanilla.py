"""Segmentation at one timestep: the clean image at the least-noise index, with the losses of `supervised`."""

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.vanilla import OneTimestepSettings, SupervisedPretraining

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
TASK = Task(n_dims=2, in_channels=1, class_names=("background", "organ"))


class Watched(nn.Module):
    """Remembers what the network was given."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        self.seen = x, t
        return self.network(x, t)


def batch_of_two():
    label = torch.randint(0, 2, (2, 8, 8))
    image = torch.randn(2, 1, 8, 8)
    return Batch(image=image, label=label, valid=None, case_ids=("a", "b"), positions=torch.arange(2))


def test_the_supervised_pretraining_sees_the_clean_image_at_the_first_timestep():
    model, batch = SupervisedPretraining(TASK, OneTimestepSettings(**SMALL, dice_weight=0.0)), batch_of_two()
    model.network = Watched(model.network)
    terms = model.loss(batch, model.stages[0], NoiseSource([(0,), (1,)]))
    image, t = model.network.seen
    assert torch.equal(image, batch.image)
    assert t.tolist() == [0, 0]
    assert set(terms) == {"cross_entropy"}
    expected = nn.functional.cross_entropy(model.network(image, t), batch.label)
    assert terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(SupervisedPretraining(TASK, OneTimestepSettings(**SMALL)).loss(batch, model.stages[0], None)) == {
        "dice",
        "cross_entropy",
    }
