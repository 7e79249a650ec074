"""The lab's supervised model as a timestep ensemble: each timestep's member has another weight for the foreground."""

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.supervised import Supervised

FOREGROUND_WEIGHTS = {1: 1.0, 10: 0.4, 25: 0.6, 100: 100.0}


class ToyEnsemble(Supervised):
    """Loads the weights of `supervised`, so that no training is needed."""

    @property
    def timesteps(self) -> tuple[int, ...]:
        return tuple(FOREGROUND_WEIGHTS)

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        (plain,) = super().predict(prepared, noise, sampling).unbind(1)
        chosen = self.timesteps if sampling.timesteps is None else sampling.timesteps
        members = []
        for t in chosen:
            weighted = torch.cat([plain[:, :1], FOREGROUND_WEIGHTS[t] * plain[:, 1:]], 1)
            members.append(weighted / weighted.sum(1, keepdim=True))
        return torch.stack(members, 1)
