"""Segmentation at one timestep: the clean image at the least-noise index, with the losses of `supervised`."""

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Sampling, enter_stage, parameters_of_stage
from medsegdiff_cli.methods.vanilla import OneTimestepSettings, SupervisedPretraining, Vanilla, VanillaSettings

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


def test_a_prediction_is_the_softmax_of_the_clean_image_at_the_first_timestep():
    method = Vanilla(TASK, VanillaSettings(**SMALL)).eval()
    nn.init.normal_(method.network.out[2].weight)
    image = torch.randn(2, 1, 8, 8)
    probabilities = method.predict(method.prepare(image), NoiseSource([(0,), (1,)]), Sampling())
    expected = method.network(image, torch.zeros(2, dtype=torch.long)).softmax(1)
    torch.testing.assert_close(probabilities[:, 0], expected)
    assert not method.stochastic


NETWORKS = {"adm": {}, "tedm": {}, "imgx": {}, "diffusers-unet2d": {"model_channels": 16}}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trains", ["not-encoder", "decoder"])
def test_frozen_parts_stay_as_they_are_and_all_others_move(network, trains):
    torch.manual_seed(0)
    method = Vanilla(TASK, VanillaSettings(**{**SMALL, "network": network, **NETWORKS[network]}, trains=trains))
    with torch.no_grad():
        for parameter in method.parameters():  # nothing starts at 0, where weight decay would not move it
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    (stage,) = method.stages
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    enter_stage(method, stage)
    optimiser = torch.optim.AdamW(parameters_of_stage(method, stage).values(), lr=1e-2, weight_decay=0.1)
    torch.stack(list(method.loss(batch_of_two(), stage, NoiseSource([(0,), (1,)])).values())).sum().backward()
    optimiser.step()
    changed = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = {"adm": ("time_embed", "input_blocks"), "tedm": ("time_embed", "stem", "down_"), "imgx": ("stem", "down")}
    encoder = parts.get(network, ("unet.time_embedding", "unet.conv_in", "unet.down_blocks"))
    middle = {"adm": "middle_block", "imgx": "bottom"}.get(network, "unet.mid" if "diff" in network else "middle")
    frozen = (*encoder, middle) if trains == "decoder" else encoder
    is_frozen = {name: name.removeprefix("network.").startswith(frozen) for name in before}
    assert any(is_frozen.values())
    assert {name for name, _ in method.named_parameters() if not is_frozen[name]} == changed
    assert all(
        not module.training for name, module in method.named_modules() if name.startswith(f"network.{middle}")
    ) == (trains == "decoder")


def test_the_default_trains_everything():
    method = Vanilla(TASK, VanillaSettings(**SMALL))
    assert len(parameters_of_stage(method, method.stages[0])) == len(list(method.parameters()))
