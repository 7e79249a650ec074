"""Batch: what the batching room hands to training and methods."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Patches of one training step.

    Attributes:
        image: float32 (batch, channel, *spatial).
        label: exclusive classes: int64 (batch, *spatial) of class indices; regions: uint8 (batch, region, *spatial);
            None without supervision.
        valid: bool (batch, *spatial), False on ignored or unannotated voxels; None when all count.
        case_ids: the cases that the patches come from.
        positions: int64 (batch,), the place of each patch in the global batch: the key of its noise stream.
        views: further views of the same patches, for contrastive stages.
    """

    image: Tensor
    label: Tensor | None
    valid: Tensor | None
    case_ids: tuple[str, ...]
    positions: Tensor
    views: tuple[Tensor, ...] = ()

    def to(self, device: torch.device, channels_last: bool = False) -> "Batch":
        """Return the batch on `device`."""
        n_dims = self.image.ndim - 2
        layout = (
            {2: torch.channels_last, 3: torch.channels_last_3d}[n_dims] if channels_last else torch.contiguous_format
        )
        return replace(
            self,
            image=self.image.to(device, non_blocking=True, memory_format=layout),
            label=None if self.label is None else self.label.to(device, non_blocking=True),
            valid=None if self.valid is None else self.valid.to(device, non_blocking=True),
            positions=self.positions,
            views=tuple(view.to(device, non_blocking=True) for view in self.views),
        )
