"""Label maps of members, packed: a segmentation is mostly large even areas, so 25 take less room than one."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor


class MemberLabels:
    """Label maps in the order in which they were added, unpacked one at a time."""

    def __init__(self) -> None:
        self._packed: list[tuple[bytes, torch.dtype, torch.Size]] = []

    def append(self, label: Tensor) -> None:
        """Add a label map of integers, (*grid)."""
        packed = zlib.compress(label.cpu().contiguous().numpy().data, 1)
        self._packed.append((packed, label.dtype, label.shape))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, number: int) -> Tensor:
        packed, dtype, shape = self._packed[number]
        return torch.frombuffer(bytearray(zlib.decompress(packed)), dtype=dtype).reshape(shape)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))
