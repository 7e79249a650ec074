"""diffusers' UNet2DModel as a backbone: its own output, with taps, early exit and without time."""

import pytest
import torch
from pydantic import ValidationError

from medsegdiff_cli.networks.diffusers_unet import DiffusersUNet, DiffusersUNetSettings

SMALL = {
    "n_dims": 2, "in_channels": 1, "out_channels": 2, "model_channels": 8, "channel_mult": (1, 2, 4),
    "num_res_blocks": 1, "attention_levels": (2,),
}  # fmt: skip
X = torch.randn(2, 1, 8, 16, generator=torch.Generator().manual_seed(1))
T = torch.tensor([3, 700])


def small(**changes):
    torch.manual_seed(0)
    return DiffusersUNet.from_settings({**SMALL, **changes}).eval()


@pytest.fixture(scope="module")
def network():
    return small()


def test_the_output_is_that_of_diffusers_own_forward(network):
    assert torch.equal(network(X, T), network.unet(X, T).sample)
    assert network(X, T).shape == (2, 2, 8, 16)


def test_taps_are_the_outputs_of_the_up_blocks_and_nothing_runs_after_the_last(network):
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in network.unet.up_blocks]
    features = network(X, T, taps=(1, 0))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    assert torch.equal(features[0], seen[1])
    assert torch.equal(features[1], seen[0])
    # Three levels of 32, 16 and 8 features; block 0 goes from a quarter to half the size, block 1 to the full size.
    assert [tuple(f.shape[1:]) for f in features] == [(16, 8, 16), (32, 4, 8)]
    assert network.tap_channels((1, 0, 2)) == (16, 32, 8)


def test_the_timestep_reaches_the_output_also_of_narrow_networks(network):
    # 8 channels in 8 groups would be an instance norm, which subtracts what the timestep adds.
    assert (network(X, T) - network(X, T + 200)).abs().mean() > 1e-3


def test_without_time_no_layer_for_it_exists_and_all_parameters_are_used():
    network = small(use_time=False)
    assert not [name for name in network.state_dict() if "time" in name]
    network(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_checkpointing_changes_memory_and_not_gradients():
    gradients = []
    for again in (False, True):
        network = small(gradient_checkpointing=again).train()
        network(X, T).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_the_divisor_is_a_power_of_two(network):
    assert network.divisor == (4, 4)
    with pytest.raises(ValueError, match=r"\(8, 6\) must have 2 axes, each a multiple of \(4, 4\)"):
        network(X[..., :6], T)


def test_what_does_not_exist_is_refused_by_name(network):
    with pytest.raises(ValidationError, match="n_dims 3: diffusers' UNet2DModel has 2 spatial axes"):
        small(n_dims=3)
    with pytest.raises(ValidationError, match=r"attention_levels \[3\] do not exist"):
        small(attention_levels=(3,))
    with pytest.raises(ValidationError, match="leaves a level without channels"):
        small(channel_mult=(1, 0))
    with pytest.raises(ValueError, match="needs a timestep"):
        network(X)
    with pytest.raises(ValueError, match="without time"):
        small(use_time=False)(X, T)
    with pytest.raises(ValueError, match=r"taps \(3,\): give one or more decoder blocks from 0 to 2"):
        network(X, T, taps=(3,))


def test_settings_survive_json():
    settings = DiffusersUNetSettings.model_validate(SMALL)
    assert DiffusersUNetSettings.model_validate_json(settings.model_dump_json()) == settings
