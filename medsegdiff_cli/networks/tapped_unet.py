"""What every U-Net here promises beside its layers: checked inputs, and features (taps) of decoder blocks."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from medsegdiff_cli.networks.depth import Layers
from medsegdiff_cli.networks.levels import total_stride


class TappedUNet(nn.Module):
    """Base of U-Nets whose decoder blocks can be read one by one, 0 being the coarsest.

    Attributes:
        settings: the shape of the network; it has `n_dims` and `use_time`, and `level_strides` unless `divisor` is
            defined anew.
    """

    settings: Any
    input_layer: ClassVar[str]
    """The layer whose shape depends on the image's channels (see `networks.transfer`)."""
    output_layer: ClassVar[str]
    """The layer whose rows are the output's channels."""
    encoder_parts: ClassVar[tuple[str, ...]]
    """Submodules that come before the coarsest features, the embedding of the timestep among them."""
    time_parts: ClassVar[tuple[str, ...]]
    """Those of them that embed the timestep; empty where the embedding has no parameters of its own."""
    middle_parts: ClassVar[tuple[str, ...]]
    """Submodules that work on the coarsest features."""
    decoder_parts: ClassVar[tuple[str, ...]]
    """Submodules that come after the coarsest features, the output layer among them."""

    @property
    def divisor(self) -> tuple[int, ...]:
        """Total stride per axis: every spatial size must be a multiple of it."""
        return total_stride(self.settings.level_strides, self.settings.n_dims)

    @abstractmethod
    def layers_in_order(self) -> Layers:
        """Return the names of the submodules, layer by layer, input first (see `networks.depth`).

        A layer is one entry of the lists of blocks or levels; stem, middle and output are layers of their own.
        """

    @property
    @abstractmethod
    def n_taps(self) -> int:
        """Number of decoder blocks that can be read."""

    def parts_up_to(self, tap: int) -> tuple[str, ...]:
        """Return the names of the submodules between the middle and what a tap reads."""
        layers = self.layers_in_order()
        first = next(index for index, layer in enumerate(layers) if set(layer) & set(self.middle_parts)) + 1
        return tuple(part for layer in layers[first : first + tap + 1] for part in layer)

    def coarsest(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the features of the middle (batch, channel, *coarsest spatial); the decoder is not computed.

        Args:
            x, t: as for `forward`.

        Raises:
            ValueError: the size of `x` is no multiple of the divisor, or a timestep is missing or not known.
        """
        self._check_input(x, t)
        return self._encode(x, self._embed(t))[0]

    @abstractmethod
    def _embed(self, t: Tensor | None) -> Tensor | None:
        """Return what the blocks are told about the timestep."""

    @abstractmethod
    def _encode(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the middle, and those of the way down that the decoder takes, coarsest last."""

    def _check_input(self, x: Tensor, t: Tensor | None) -> None:
        n_dims, size = self.settings.n_dims, tuple(x.shape[2:])
        if len(size) != n_dims or any(n % step for n, step in zip(size, self.divisor, strict=False)):
            raise ValueError(f"spatial size {size} must have {n_dims} axes, each a multiple of {self.divisor}")
        if (t is not None) != self.settings.use_time:
            raise ValueError("this network needs a timestep" if t is None else "this network was built without time")

    def _checked_taps(self, taps: Sequence[int]) -> Sequence[int]:
        if not taps or any(not 0 <= tap < self.n_taps for tap in taps):
            raise ValueError(f"taps {tuple(taps)}: give one or more decoder blocks from 0 to {self.n_taps - 1}")
        return taps
