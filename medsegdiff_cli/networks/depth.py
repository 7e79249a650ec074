"""Depth: how many layers lie between a parameter and the network's output.

Learning rates that fall towards the input count it (Clark et al. 2020; Bao et al. 2022). What a layer is, a network
says itself by a method `layers_in_order`: names of its submodules, layer by layer, the input's first. What tells a
network the time belongs to its first layer, as the embeddings of a transformer do.
"""

from torch import nn

Layers = tuple[tuple[str, ...], ...]


def depths_of(target: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter of the networks in `target` that say their order; 0 is an output layer's."""
    depths: dict[str, int] = {}
    for prefix, network in target.named_modules():
        say = getattr(network, "layers_in_order", None)
        if not callable(say):
            continue
        for depth, layer in enumerate(reversed(say())):
            for part in layer:
                full = f"{prefix}.{part}" if prefix else part
                names = (name for name, _ in network.get_submodule(part).named_parameters())
                depths.update(dict.fromkeys((f"{full}.{name}" for name in names), depth))
    return depths


def each_of(*lists: str, length: int) -> Layers:
    """Return a layer for each index of module lists that go together: `(LIST.0, ...), (LIST.1, ...), ...`."""
    return tuple(tuple(f"{name}.{index}" for name in lists) for index in range(length))
