"""Every network under the same settings, the same interface and the same method."""

import pytest
import torch
from pydantic import ValidationError

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.backbone import NETWORKS, BackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.supervised import Supervised, SupervisedSettings
from medsegdiff_cli.networks.imgx_unet import ImgXSettings
from medsegdiff_cli.networks.memory import measure_step

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
NOISE = NoiseSource([(0,), (1,)])
every_network = pytest.mark.parametrize(
    ("network", "n_dims"),
    [("adm", 2), ("adm", 3), ("tedm", 2), ("tedm", 3), ("imgx", 2), ("imgx", 3), ("diffusers-unet2d", 2)],
)


def settings(network, **changes):
    return BackboneSettings(network=network, **{**SMALL, **changes})


def backbone(network, n_dims=2, **changes):
    return build_backbone(settings(network, **changes), n_dims=n_dims, in_channels=1, out_channels=2, use_time=True)


@every_network
def test_supervised_learns_and_predicts_with_every_network(network, n_dims):
    torch.manual_seed(0)
    shape = (8, 6, 4)[:n_dims]
    task = Task(n_dims=n_dims, in_channels=1, class_names=("a", "b"), classes_are_exclusive=True)
    method = Supervised(task, SupervisedSettings(network=network, **SMALL)).train()
    label = torch.zeros(2, *shape, dtype=torch.int64)
    label[:, : shape[0] // 2] = 1
    image = label[:, None] - 0.5
    batch = Batch(image=image, label=label, valid=None, case_ids=("x", "y"), positions=torch.arange(2))
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        total = torch.stack(list(method.loss(batch, Supervised.stages[0], NOISE).values())).sum()
        total.backward()
        optimiser.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]
    assert method.divisor == (2,) * n_dims
    probabilities = method.eval().predict(image, NOISE, Sampling())
    assert probabilities.shape == (2, 1, 2, *shape)
    torch.testing.assert_close(probabilities.sum(2), torch.ones(2, 1, *shape))


@every_network
def test_every_network_has_taps_a_divisor_and_a_named_input_layer(network, n_dims):
    built = backbone(network, n_dims)
    features = built(torch.randn(1, 1, *(4,) * n_dims), torch.tensor([7]), taps=(1, 0))
    assert tuple(f.shape[1] for f in features) == built.tap_channels((1, 0))
    assert built.divisor == (2,) * n_dims
    assert built.get_submodule(built.input_layer).weight.shape[1] == 1


@every_network
def test_the_step_of_every_network_can_be_counted_without_running_it(network, n_dims):
    shape = (8,) * n_dims
    counts = [
        measure_step(
            lambda: backbone(network, n_dims),
            lambda built, batch=batch: built(torch.zeros(batch, 1, *shape), torch.zeros(batch)).sum(),
            training=True,
        ).total_bytes
        for batch in (1, 4)
    ]
    weights = sum(p.numel() * p.element_size() for p in backbone(network, n_dims).parameters())
    assert weights < counts[0] < counts[1]


def test_the_networks_of_one_setting_differ():
    assert len({type(backbone(network)) for network in NETWORKS}) == 4


@pytest.mark.parametrize("network", ["adm", "tedm", "diffusers-unet2d"])
def test_no_attention_level_means_no_attention(network):
    names = [name for name, _ in backbone(network, attention_levels=()).named_parameters()]
    assert not [name for name in names if "qkv" in name or "to_q" in name]
    names = [name for name, _ in backbone(network).named_parameters()]
    assert [name for name in names if "qkv" in name or "to_q" in name]


@pytest.mark.parametrize("network", ["adm", "tedm", "imgx"])
def test_strides_of_the_plan_reach_the_network(network):
    assert backbone(network, strides=((1, 2),)).divisor == (1, 2)


def test_diffusers_network_takes_only_strides_of_two():
    assert backbone("diffusers-unet2d", strides=((2, 2),)).divisor == (2, 2)
    for strides in (((1, 2),), ((2, 2), (2, 2))):
        content = settings("adm", strides=strides).model_dump() | {"network": "diffusers-unet2d"}
        with pytest.raises(UsageError, match="halves every axis at each of its 1 transitions") as error:
            validate(BackboneSettings, content, "settings")
        assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("network", "n_dims", "changes", "message"),
    [
        ("diffusers-unet2d", 3, {}, "n_dims 3: diffusers' unet2dmodel has 2 spatial axes"),
        ("diffusers-unet2d", 2, {"model_channels": 7}, "model_channels: .*multiple of 2"),
        ("tedm", 2, {"attention_levels": (2,)}, r"attention_levels \[2\] do not exist"),
        ("adm", 2, {"strides": ((2, 2), (2, 2))}, "2 strides for 1 transitions"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error_that_names_it(network, n_dims, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        backbone(network, n_dims, **changes)
    assert isinstance(error.value, UsageError)
    assert error.value.where == f"settings of the network '{network}'"
    assert error.value.exit_code == 2


@pytest.mark.fault("F78")
def test_an_unknown_network_is_refused():
    with pytest.raises(ValidationError, match="'adm', 'tedm', 'imgx' or 'diffusers-unet2d'"):
        BackboneSettings(network="unet")


def test_imgx_has_the_papers_shape_unless_told_otherwise():
    own, told = BackboneSettings(network="imgx"), BackboneSettings(network="imgx", model_channels=8, dropout=0.0)
    paper = {"model_channels": 32, "channel_mult": (1, 2, 4, 8), "num_res_blocks": 2, "attention_levels": ()}
    assert {name: getattr(own, name) for name in paper} == paper
    assert (own.dropout, own.num_head_channels, own.time_injection) == (0.1, 64, "after-norm")
    assert (told.model_channels, told.dropout, told.num_res_blocks) == (8, 0.0, 2)
    assert BackboneSettings.model_validate(own.model_dump()) == own
    built = build_backbone(own, n_dims=2, in_channels=1, out_channels=2, use_time=True)
    assert built.settings == ImgXSettings(n_dims=2, in_channels=1, out_channels=2)


def test_the_time_of_imgx_can_be_cancelled_as_in_its_published_code():
    x, differences = torch.randn(2, 1, 8, 8), {}
    for injection in ("after-norm", "cancelled"):
        torch.manual_seed(0)
        network = backbone("imgx", time_injection=injection, dropout=0.0)
        differences[injection] = (network(x, torch.tensor([0, 1])) - network(x, torch.tensor([1000, 900]))).abs().max()
    assert differences["after-norm"] > 1e-2
    assert differences["cancelled"] < 1e-5


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("adm", {"time_injection": "cancelled"}, "time_injection 'cancelled' is of network 'imgx', not of 'adm'"),
        ("tedm", {"positional_encoding": "none"}, "positional_encoding 'none' is of network 'imgx', not of 'tedm'"),
        ("imgx", {"attention_levels": (0,)}, "one transformer block, at its coarsest level 1; attention_levels say"),
    ],
)
def test_settings_of_another_network_are_refused(network, changes, message):
    content = settings("adm").model_dump() | {"network": network} | changes
    with pytest.raises(UsageError, match=message) as error:
        validate(BackboneSettings, content, "settings")
    assert error.value.exit_code == 2
