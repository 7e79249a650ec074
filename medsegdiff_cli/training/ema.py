"""Exponential moving average of the trained weights: the weights that predict."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medsegdiff_cli.errors import IntegrityError


class Ema:
    """Average of the parameters of a stage; buffers and frozen parameters are used as they are.

    The decay warms up as min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ..., so that early weights are forgotten.

    Args:
        parameters: the trained parameters by name.
        decay: weight of the old average.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the current parameters; `n` counts the updates before this one."""
        share = 1 - min(self._decay, (1 + n) / (10 + n))
        for name, parameter in self._parameters.items():
            self.averages[name].lerp_(parameter, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the averages into the model for the duration of the block; exact, and without a third copy."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved averages.

        Raises:
            IntegrityError: they belong to other parameters.
        """
        if tensors.keys() != self.averages.keys():
            raise IntegrityError("the checkpoint's averaged weights belong to another set of parameters")
        for name, tensor in tensors.items():
            self.averages[name].copy_(tensor)

    def swap(self) -> None:
        """Exchange the averages with the model's weights."""
        for name, parameter in self._parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data
