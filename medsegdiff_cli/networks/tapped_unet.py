"""What every U-Net here promises beside its layers: checked inputs, and features (taps) of decoder blocks."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

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
    middle_parts: ClassVar[tuple[str, ...]]
    """Submodules that work on the coarsest features."""
    decoder_parts: ClassVar[tuple[str, ...]]
    """Submodules that come after the coarsest features, the output layer among them."""

    @property
    def divisor(self) -> tuple[int, ...]:
        """Total stride per axis: every spatial size must be a multiple of it."""
        return total_stride(self.settings.level_strides, self.settings.n_dims)

    @property
    @abstractmethod
    def n_taps(self) -> int:
        """Number of decoder blocks that can be read."""

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
