"""Importance sampling of training timesteps: those with a large loss are drawn more often, and count less each.

Nichol & Dhariwal 2021 (section 3.4) draw t with a probability proportional to √E[L²]; Fu et al. 2023 (section 3.1.1)
to E[L]. Divided by its probability, a loss keeps its expectation: E over p of L / (T p) = mean of L over all t.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from medsegdiff_cli.diffusion.noise import NoiseSource

Rule = Literal["uniform", "mean-loss", "root-mean-square-loss"]
Weighting = Literal["unbiased", "inverted"]

# As in the published codes: losses of the last few draws count; nothing is left out for good.
_DECAY = 0.9
_DRAWS_BEFORE = 10
_UNIFORM_SHARE = 0.001


class TimestepSampler(nn.Module):
    """Draws timesteps for a training step and learns from their losses.

    Until every timestep has been seen ten times, those seen least are drawn with equal weights. All state is in
    buffers, so that a resumed training goes on exactly.

    Args:
        T: number of timesteps, 0 ... T-1.
        rule: `uniform` draws all alike and learns nothing.
        weighting: `unbiased` weighs a loss by 1 / (T p); `inverted` by T p, as the published code of Fu et al. does,
            which counts hard timesteps twice.
    """

    def __init__(self, T: int, rule: Rule = "uniform", weighting: Weighting = "unbiased") -> None:
        super().__init__()
        self.T, self.rule, self.weighting = T, rule, weighting
        if rule != "uniform":
            self.register_buffer("moment", torch.zeros(T))
            self.register_buffer("count", torch.zeros(T))
            self.register_buffer("new_sum", torch.zeros(T))
            self.register_buffer("new_count", torch.zeros(T))

    moment: Tensor
    count: Tensor
    new_sum: Tensor
    new_count: Tensor

    def probabilities(self) -> Tensor:
        """Return the probability of each timestep, float64 (T,) on the CPU."""
        if self.rule == "uniform":
            return torch.full((self.T,), 1 / self.T, dtype=torch.float64)
        moment = self.moment.cpu().double()
        size = moment.sqrt() if self.rule == "root-mean-square-loss" else moment
        learnt = (1 - _UNIFORM_SHARE) * size / size.sum().clamp(min=1e-30) + _UNIFORM_SHARE / self.T
        missing = (_DRAWS_BEFORE - self.count.cpu().double()).clamp(min=0)
        return torch.where(missing.any(), missing / missing.sum().clamp(min=1), learnt / learnt.sum())

    def draw(self, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Return a timestep for each item, int64 (batch,), and the weight of its loss, float32 (batch,).

        Args:
            noise: one stream per item.
        """
        if self.rule == "uniform":
            t = noise.randint(0, self.T)
            return t, torch.ones(len(t), device=t.device)
        p = self.probabilities()
        place = noise.rand(1)[:, 0].cpu().double()
        t = torch.searchsorted(p.cumsum(0), place, right=True).clamp(max=self.T - 1)
        share = p[t] * self.T
        weight = share if self.weighting == "inverted" else 1 / share
        is_early = (self.count.cpu() < _DRAWS_BEFORE).any()
        weight = torch.where(is_early, 1.0, weight).float()
        return t.to(noise.device), weight.to(noise.device)

    @torch.no_grad()
    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the unweighted losses (batch,) at timesteps `t`; they count from the next step on."""
        if self.rule == "uniform":
            return
        power = 2 if self.rule == "root-mean-square-loss" else 1
        self.new_sum.index_add_(0, t, losses.to(self.new_sum.dtype) ** power)
        self.new_count.index_add_(0, t, torch.ones_like(losses, dtype=self.new_count.dtype))

    @torch.no_grad()
    def learn(self, total: Callable[[Tensor], Tensor]) -> None:
        """End a training step: take the losses of all processes into the running means.

        Args:
            total: returns the sum of a tensor over the processes.
        """
        if self.rule == "uniform":
            return
        sums, counts = total(self.new_sum), total(self.new_count)
        seen = counts > 0
        means = sums / counts.clamp(min=1)
        # n losses at once move the running mean as n losses one after another would, each being their mean.
        kept = torch.where(self.count > 0, _DECAY**counts, 0)
        self.moment.copy_(torch.where(seen, kept * self.moment + (1 - kept) * means, self.moment))
        self.count += counts
        self.new_sum.zero_()
        self.new_count.zero_()
