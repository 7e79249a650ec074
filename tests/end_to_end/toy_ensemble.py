"""The lab's supervised model as a timestep ensemble: each timestep's member sees the image a little brighter."""

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.supervised import Supervised

BRIGHTER_BY = {1: 0.0, 10: -0.4, 25: 0.5, 100: 0.9}


class ToyEnsemble(Supervised):
    """Loads the weights of `supervised`, so that no training is needed."""

    @property
    def timesteps(self) -> tuple[int, ...]:
        return tuple(BRIGHTER_BY)

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        chosen = self.timesteps if sampling.timesteps is None else sampling.timesteps
        members = [Supervised.predict(self, prepared + BRIGHTER_BY[t], noise, sampling) for t in chosen]
        return torch.cat(members, 1)
