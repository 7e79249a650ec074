"""Random streams: one generator per item, keyed by what the item *is*, never by how it was batched.

In training the key is (seed, step, position in the global batch), in prediction (seed, case, window, draw). The same
item therefore sees the same numbers whatever the batch size, order, shard or number of workers.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


def stream_seed(*key: object) -> int:
    """Return a 63-bit seed that depends on every part of `key` and on nothing else."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class NormalSource(Protocol):
    """Whatever gives standard normal numbers to each item of a batch."""

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers (batch, *shape)."""


class NoiseSource:
    """One stream per batch item; numbers are drawn on the CPU, so that devices agree.

    Args:
        keys: one key per batch item.
        device: where drawn tensors are moved to.
    """

    def __init__(self, keys: Sequence[tuple[object, ...]], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(stream_seed(*key)) for key in keys]
        self._deciders = [random.Random(stream_seed(*key, "decisions")) for key in keys]

    def __len__(self) -> int:
        return len(self._generators)

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers (batch, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self.device)

    def rand(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), (batch, *shape)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators]).to(self.device)

    def randint(self, low: int, high: int) -> Tensor:
        """Return one integer per item in [low, high), int64 (batch,)."""
        return torch.cat([torch.randint(low, high, (1,), generator=g) for g in self._generators]).to(self.device)

    def decide(self, chance: float) -> list[bool]:
        """Return a decision per item, true with this chance; python's own, as they steer what is computed at all."""
        return [decider.random() < chance for decider in self._deciders]
