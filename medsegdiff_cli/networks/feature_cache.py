"""Feature cache: what a frozen network gave, kept on disk as float16 at each block's own resolution.

Worth its disk only where the same input comes again: the same image, unchanged, with the same noise. An enlarged
feature map of one image can take gigabytes; at its blocks' own resolutions it takes some tens of megabytes.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsegdiff_cli import atomic


class FeatureCache:
    """Features by the content of the input.

    Values are rounded to float16 whether they come from the disk or were just computed, and each item is computed
    alone: so what a training sees does not depend on what the cache holds.

    Args:
        folder: of one network with fixed weights; made when the first features are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def features(self, inputs: Tensor, name: str, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """Return the features of a batch, a block each (batch, channel, *grid), float16.

        Args:
            inputs: (batch, channel, *spatial).
            name: of what `compute` does beside its input, such as a timestep.
            compute: from one item (1, channel, *spatial) to its blocks.
        """
        items = [self._item(item, name, compute) for item in inputs.split(1)]
        return [torch.cat(blocks) for blocks in zip(*items, strict=True)]

    def _item(self, item: Tensor, name: str, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        content = item.detach().cpu().contiguous()
        key = hashlib.sha256(f"{name}{tuple(content.shape)}".encode() + content.numpy().tobytes()).hexdigest()
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            try:
                stored = load_file(path)
                return [stored[str(index)].to(item.device) for index in range(len(stored))]
            except (SafetensorError, KeyError):
                path.unlink()  # damaged: computed again
        blocks = [block.detach().half() for block in compute(item)]
        with atomic.staged(path) as temporary:
            save_file({str(index): block.cpu().contiguous() for index, block in enumerate(blocks)}, temporary)
        return blocks
