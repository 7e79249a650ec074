"""Settings of a method for a chosen network: whose shape counts, and what the scales make of it."""

import pytest

from medsegdiff_cli.methods.backbone import OWN_SHAPES
from medsegdiff_cli.workflows.method_settings import transitions_of, with_network, with_scale
from medsegdiff_cli.workflows.recipes import load_recipe, sections_of

PAPER = {"model_channels": 32, "channel_mult": (1, 2, 4, 8), "num_res_blocks": 2, "num_head_channels": 64}


def settings_of(method, preset="recommended"):
    return sections_of(method, load_recipe(method), preset)["method"]


def test_imgx_has_its_own_shape_in_a_recipe_for_another_network():
    recipe = {**settings_of("supervised"), "dice_weight": 2.0}
    assert (recipe["network"], recipe["model_channels"]) == ("adm", 64)
    chosen = with_network("supervised", recipe, "imgx")
    assert {name: chosen[name] for name in PAPER} == PAPER
    assert (chosen["network"], chosen["attention_levels"], chosen["dropout"]) == ("imgx", (), 0.1)
    assert chosen["dice_weight"] == 2.0
    assert transitions_of("supervised", chosen) == 3


def test_the_recipes_own_network_and_those_without_a_shape_keep_the_recipes():
    recipe = settings_of("supervised")
    assert with_network("supervised", recipe, "adm") == recipe
    assert with_network("supervised", recipe, "tedm") == {**recipe, "network": "tedm"}


def test_what_only_imgx_has_goes_away_with_it():
    recipe = {"network": "imgx", "model_channels": 32, "time_injection": "cancelled", "positional_encoding": "none"}
    assert with_network("supervised", recipe, "adm") == {"network": "adm", "model_channels": 32}


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
def test_scales_go_over_the_networks_shape(scale, n_dims):
    settings = with_scale("supervised", {"network": "imgx"}, scale, n_dims)
    width = settings["model_channels"] * settings["channel_mult"][-1]
    assert settings["num_head_channels"] == width / 4, "as the network's own size has it"
    assert transitions_of("supervised", settings) == 3
    assert settings["dropout"] == OWN_SHAPES["imgx"]["dropout"]
    plain = with_scale("supervised", {"network": "adm", "model_channels": 32}, scale, n_dims)
    assert settings["model_channels"] == plain["model_channels"]
    assert "dropout" not in plain
