"""Learning rates layer by layer: each parameter's equals the closed form, and a frozen one has none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_run, signal_at
from torch import nn
from toy_training import settings, toy, train

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import Interrupted, UsageError
from medsegdiff_cli.methods.backbone import NETWORKS, TimedBackboneSettings, build_backbone
from medsegdiff_cli.methods.base import parameters_of_stage
from medsegdiff_cli.methods.vanilla import Vanilla, VanillaSettings
from medsegdiff_cli.networks.deeplabv3 import DeepLabV3
from medsegdiff_cli.networks.depth import depths_of
from medsegdiff_cli.networks.segformer import SegFormer
from medsegdiff_cli.training.optimisation import build_optimiser, learning_rate_factors, set_learning_rate

SHAPE: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 2, 2),
    "num_res_blocks": 2,
    "attention_levels": (2,),
    "num_head_channels": 8,
}
TASK = Task(n_dims=2, in_channels=1, class_names=("background", "organ"), classes_are_exclusive=True, ignore=False)


def backbone(name: str, *, use_time: bool = True, n_dims: int = 2) -> nn.Module:
    chosen = TimedBackboneSettings(network=name, **SHAPE)
    return build_backbone(chosen, n_dims=n_dims, in_channels=1, out_channels=2, use_time=use_time)


def networks() -> Iterator[Any]:
    for name in NETWORKS:
        for use_time in (True, False):
            yield pytest.param(lambda n=name, t=use_time: backbone(n, use_time=t), id=f"{name}-time-{use_time}")
    yield pytest.param(lambda: backbone("adm", n_dims=3), id="adm-3d")
    yield pytest.param(lambda: DeepLabV3(1, 2, width=4, blocks=(1, 2, 1, 1)), id="deeplabv3")
    yield pytest.param(lambda: SegFormer(1, 2, width=8, blocks=(1, 2, 1, 1), head_width=8), id="segformer")


@pytest.mark.parametrize("build", list(networks()))
def test_every_parameter_has_one_depth_and_the_output_none(build: Any) -> None:
    network = build()
    layers = network.layers_in_order()
    named = [[f"{part}." for part in layer] for layer in layers]
    for name, _ in network.named_parameters():
        assert sum(name.startswith(tuple(parts)) for parts in named) == 1, name
    depths = depths_of(network)
    assert depths.keys() == dict(network.named_parameters()).keys()
    assert set(depths.values()) == set(range(len(layers)))
    assert depths[f"{network.output_layer}.weight"] == 0
    assert depths[f"{network.input_layer}.weight"] == len(layers) - 1


@pytest.mark.parametrize("build", list(networks()))
def test_layers_are_in_the_order_in_which_they_compute(build: Any) -> None:
    """A layer's last submodule computes after that of the layer before (what tells the time is not the last)."""
    network, order = build().eval(), []
    last = [layer[-1] for layer in network.layers_in_order()]
    for name in last:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        if isinstance(module, nn.ModuleList):  # is not called itself: its last entry is
            module[-1].register_forward_hook(lambda *_, name=name: order.append(name))
    timed = getattr(getattr(network, "settings", None), "use_time", False)
    three = getattr(getattr(network, "settings", None), "n_dims", 2) == 3
    image = torch.zeros(1, 1, *((8,) * 3 if three else (64, 64)))
    network(image, torch.zeros(1)) if timed else network(image)
    computed = list(dict.fromkeys(order))
    assert computed == [name for name in last if name in computed]
    assert len(computed) >= len(last) - 2


def rates(method: nn.Module, chosen: Any) -> tuple[dict[str, float], Any]:
    """Return the learning rate of each trained parameter, from the optimiser's groups."""
    parameters = parameters_of_stage(method, method.stages[0])
    optimiser = build_optimiser(parameters, chosen, learning_rate_factors(method, parameters, chosen))
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}, optimiser


def test_each_rate_is_the_closed_form_by_hand() -> None:
    """ADM with 3 levels of 2 blocks: stem + 2 + down + 2 + down + 2 = 9 in, 1 middle, 3 x 3 = 9 out, 1 output: 20."""
    method = Vanilla(TASK, VanillaSettings(network="adm", **SHAPE))
    chosen = settings(10, learning_rate=0.5, layer_decay=0.9)
    found, optimiser = rates(method, chosen)
    assert found.keys() == dict(method.named_parameters()).keys()
    by_hand = {
        "network.out.2.weight": 0,
        "network.output_blocks.8.0.in_layers.0.weight": 1,
        "network.output_blocks.0.0.in_layers.0.weight": 9,
        "network.middle_block.0.in_layers.0.weight": 10,
        "network.input_blocks.8.0.in_layers.0.weight": 11,
        "network.input_blocks.1.0.in_layers.0.weight": 18,
        "network.input_blocks.0.0.weight": 19,
        "network.time_embed.0.weight": 19,
    }
    for name, depth in by_hand.items():
        assert found[name] == pytest.approx(0.5 * 0.9**depth, rel=1e-12), name
    set_learning_rate(optimiser, 0.25)  # as warm-up does
    assert sorted(g["lr"] for g in optimiser.param_groups) == pytest.approx(sorted(0.25 * 0.9**d for d in range(20)))


def test_a_frozen_part_has_no_rate_and_the_others_keep_theirs() -> None:
    chosen = settings(10, learning_rate=1.0, layer_decay=0.5)
    whole, _ = rates(Vanilla(TASK, VanillaSettings(network="tedm", **SHAPE)), chosen)
    decoder, _ = rates(Vanilla(TASK, VanillaSettings(network="tedm", trains="decoder", **SHAPE)), chosen)
    assert 0 < len(decoder) < len(whole)
    assert all(name.startswith(("network.up_", "network.final.", "network.out.")) for name in decoder)
    assert decoder == {name: whole[name] for name in decoder}


def test_factors_by_name_multiply_and_the_longest_name_counts() -> None:
    method = Vanilla(TASK, VanillaSettings(network="adm", **SHAPE))
    chosen = settings(10, learning_rate=1.0, learning_rate_factors={"network": 2.0, "network.out": 10.0})
    found, _ = rates(method, chosen)
    # `out` is a whole part of the name: `output_blocks` is another.
    assert {rate for name, rate in found.items() if name.startswith("network.out.")} == {10.0}
    assert {rate for name, rate in found.items() if not name.startswith("network.out.")} == {2.0}
    with pytest.raises(UsageError, match=r"no trained parameter's name begins with 'network\.head'"):
        rates(method, settings(10, learning_rate_factors={"network.head": 2.0}))


def test_without_decay_there_is_one_group_of_the_plain_rate() -> None:
    _, optimiser = rates(Vanilla(TASK, VanillaSettings(network="adm", **SHAPE)), settings(10, learning_rate=0.3))
    assert [group["lr"] for group in optimiser.param_groups] == [0.3]


def test_a_network_without_an_order_is_refused() -> None:
    with pytest.raises(UsageError, match="no network whose layers have an order") as refused:
        rates(toy(), settings(10, layer_decay=0.9))
    assert refused.value.exit_code == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_training_with_several_rates_resumes_exactly(tmp_path: Path) -> None:
    chosen = settings(12, learning_rate_factors={"head": 0.1})
    train(toy(), tmp_path / "a", chosen)
    with pytest.raises(Interrupted):
        train(toy(), tmp_path / "b", chosen, make_batches=signal_at(4, chosen, 2))
    train(toy(), tmp_path / "b", chosen)
    assert_same_run(tmp_path / "a", tmp_path / "b")
