"""Settings of a method that network, scale and plan fill in; a method takes only those that it has a field for."""

from collections.abc import Mapping
from typing import Any

from medsegdiff_cli.artifacts.plan import Scale
from medsegdiff_cli.methods.backbone import ONLY_OF_IMGX, own_shape
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.planning.scales import scale_table


def with_network(method: str, settings: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """Return the settings for another network than the recipe's.

    A network with a shape of its own has that one, not what a recipe says about another network: `--set network=imgx`
    is the same network in every method. What only the recipe's network has goes away with it.
    """
    fields = find_trainable(method).load().Settings.model_fields
    if "network" not in fields or chosen == settings.get("network", fields["network"].default):
        return dict(settings)
    own = own_shape(chosen)
    kept = {name: value for name, value in settings.items() if name not in own and name not in ONLY_OF_IMGX}
    return {**kept, **own, "network": chosen}


def with_scale(method: str, settings: Mapping[str, Any], scale: Scale, n_dims: int) -> dict[str, Any]:
    """Return the settings with the width and depth of a scale's table, over the network's own shape."""
    fields = find_trainable(method).load().Settings.model_fields
    if "network" not in fields:
        return {**settings, **known_to(method, scale_table(scale, n_dims).network_settings())}
    network = settings.get("network", fields["network"].default)
    return {**own_shape(network), **settings, **scale_table(scale, n_dims, network).network_settings()}


def steps_of(method: str, network_steps: int) -> int:
    """Return the steps of a method's stages, where a scale gives those that a whole network needs."""
    return max(1, round(network_steps * max(stage.effort for stage in find_trainable(method).load().stages)))


def known_to(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the method has a setting for."""
    fields = find_trainable(method).load().Settings.model_fields
    return {name: value for name, value in values.items() if name in fields}


def transitions_of(method: str, settings: Mapping[str, Any]) -> int:
    """Return how many times the method's network changes resolution; 0 for one that keeps it."""
    loaded = find_trainable(method).load()
    fields = loaded.Settings.model_fields
    if "channel_mult" not in fields:
        return loaded.n_transitions
    return len(settings.get("channel_mult", fields["channel_mult"].default)) - 1
