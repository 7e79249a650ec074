"""Weights of one dataset's network in another's: loaded, adapted, new, unused, and how much."""

import pytest
import torch
from torch import nn

from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet, parameter_count
from medsegdiff_cli.networks.transfer import adapt_state


def network(in_channels=1, out_channels=2, seed=0, **changes) -> ADMUNet:
    torch.manual_seed(seed)
    values = {"n_dims": 2, "model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
    return ADMUNet(ADMSettings(in_channels=in_channels, out_channels=out_channels, **(values | changes)))


def statuses(transfer) -> dict[str, str]:
    return {row.name: row.status for row in transfer.rows}


def test_an_equal_network_takes_everything():
    source, target = network(seed=1), network(seed=2)
    transfer = adapt_state(source.state_dict(), target)
    assert transfer.coverage == 1
    assert set(statuses(transfer).values()) == {"loaded"}
    target.load_state_dict(transfer.state)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 3)])
def test_an_input_layer_of_other_channels_gives_the_same_features_of_a_repeated_image(old, new):
    source, target = network(in_channels=old, seed=1), network(in_channels=new, seed=2)
    transfer = adapt_state(source.state_dict(), target)
    target.load_state_dict(transfer.state)
    adapted = [row for row in transfer.rows if row.status == "adapted"]
    assert [(row.name, row.source_shape, row.target_shape) for row in adapted] == [
        ("input_blocks.0.0.weight", (8, old, 3, 3), (8, new, 3, 3))
    ]
    assert transfer.coverage == 1
    image = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(
        target.input_blocks[0](image.expand(-1, new, -1, -1), None),
        source.input_blocks[0](image.expand(-1, old, -1, -1), None),
    )


def test_an_output_layer_of_other_classes_is_new_and_lowers_the_coverage():
    source, target = network(out_channels=2, seed=1), network(out_channels=4, seed=2)
    nn.init.normal_(target.out[2].weight)
    initial = target.out[2].weight.clone()
    transfer = adapt_state(source.state_dict(), target)
    target.load_state_dict(transfer.state)
    new = [row.name for row in transfer.rows if row.status == "new"]
    assert new == ["out.2.weight", "out.2.bias"]
    assert torch.equal(target.out[2].weight, initial)
    n_new = 4 * 8 * 9 + 4
    assert transfer.coverage == pytest.approx(1 - n_new / parameter_count(target))


def test_only_the_input_layer_is_ever_adapted():
    # More features in the middle level change the second axis of many weights; averaging them would be wrong.
    source, target = network(seed=1), network(seed=2, channel_mult=(1, 4))
    transfer = adapt_state(source.state_dict(), target)
    assert set(statuses(transfer).values()) == {"loaded", "new"}
    assert 0 < transfer.coverage < 1


def test_2d_weights_do_not_fit_3d_kernels():
    transfer = adapt_state(network().state_dict(), network(n_dims=3))
    found = statuses(transfer)
    assert found["input_blocks.0.0.weight"] == "new"
    assert found["time_embed.0.weight"] == "loaded"


def test_tensors_without_a_place_are_listed_as_unused():
    transfer = adapt_state(network().state_dict(), network(use_time=False))
    unused = [row for row in transfer.rows if row.status == "unused"]
    assert "time_embed.0.weight" in {row.name for row in unused}
    assert all(row.target_shape is None and row.source_shape is not None for row in unused)
    assert transfer.coverage == 1


def test_a_network_inside_a_method_is_adapted_too():
    source, target = nn.ModuleDict({"network": network()}), nn.ModuleDict({"network": network(in_channels=2)})
    assert statuses(adapt_state(source.state_dict(), target))["network.input_blocks.0.0.weight"] == "adapted"


def test_half_precision_weights_are_widened():
    half = {name: tensor.half() for name, tensor in network().state_dict().items()}
    assert {tensor.dtype for tensor in adapt_state(half, network()).state.values()} == {torch.float32}


def test_nothing_in_common_is_no_coverage():
    assert adapt_state({}, network()).coverage == 0
