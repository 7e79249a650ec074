"""Prepared windows: what a method makes of a window before it sees noise, made once however often it is asked for.

Draws come one after the other, each over all windows, since a draw's label map, votes and variance need the whole
image. So the prepared windows are kept between draws (and between the steps of a shared canvas): in memory up to
`KEPT_BYTES`, beyond that in a nameless file of the system's folder for temporary files, which is gone when the process
ends. What is the image itself is not kept but cut again. Memory and file do not grow with draws or steps.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from medsegdiff_cli.inference.settings import InferenceSettings, autocast
from medsegdiff_cli.inference.windows import WindowGrid
from medsegdiff_cli.methods.base import Method

KEPT_BYTES = 1 << 30


class PreparedWindows:
    """The windows of one image as one method prepares them.

    Args:
        image: float32 (channel, *grid) on the CPU, padded to the windows.
        keep: whether windows are asked for more than once.
    """

    def __init__(
        self, method: Method, image: Tensor, grid: WindowGrid, settings: InferenceSettings, *, keep: bool
    ) -> None:
        self._method, self._image, self._grid, self._settings = method, image, grid, settings
        self._device = next(method.parameters()).device
        self._keep, self._shelf = keep, _Shelf(KEPT_BYTES)
        self._kept: dict[tuple[int, tuple[int, ...]], Any] = {}

    def get(self, numbers: range, axes: tuple[int, ...]) -> Any:
        """Return what the method's `prepare` gave for these windows; always ask for the same groups of numbers.

        Args:
            axes: of the image grid, along which the windows are mirrored.
        """
        key = (numbers.start, axes)
        if key in self._kept:
            return self._restored(self._kept[key], numbers, axes)
        windows = self._cut(numbers, axes)
        with autocast(self._settings.precision, self._device):
            prepared = self._method.prepare(windows)
        if self._keep:

            def keep(tensor: Tensor) -> "_Stored | _Image":
                return _Image() if _is(tensor, windows) else self._shelf.put(tensor)

            self._kept[key] = _mapped(prepared, keep)
        return prepared

    def close(self) -> None:
        """Let go of all that was kept."""
        self._kept.clear()
        self._shelf.close()

    def _cut(self, numbers: range, axes: tuple[int, ...]) -> Tensor:
        """Return windows (batch, channel, *patch) on the method's device."""
        cut = [self._image[(slice(None), *self._grid.slices(self._grid.starts[n]))] for n in numbers]
        return network_view(torch.stack(cut), axes, self._settings).to(self._device)

    def _restored(self, kept: Any, numbers: range, axes: tuple[int, ...]) -> Any:
        def restore(leaf: "_Stored | _Image") -> Tensor:
            if isinstance(leaf, _Image):
                return self._cut(numbers, axes)
            return self._shelf.get(leaf).to(self._device)

        return _mapped(kept, restore)


def network_view(windows: Tensor, axes: tuple[int, ...], settings: InferenceSettings) -> Tensor:
    """Return windows (batch, channel, *window) as the network sees them: mirrored, and slices without their axis."""
    mirrored = windows.flip([axis + 2 for axis in axes]) if axes else windows
    return mirrored.squeeze(2) if settings.slices else mirrored


def image_view(outputs: Tensor, axes: tuple[int, ...], settings: InferenceSettings) -> Tensor:
    """Return outputs (batch, map, class, *patch) of a network as they lie in the image: `network_view` undone."""
    outputs = outputs.unsqueeze(3) if settings.slices else outputs
    return outputs.flip([axis + 3 for axis in axes]) if axes else outputs


class _Image:
    """Stands for the window itself in what is kept."""


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A kept tensor, or the place of one in the file.

    Attributes:
        tensor: the tensor, or an empty one of its dtype when it is in the file.
        offset: in the file, -1 when it is not there.
    """

    tensor: Tensor
    shape: torch.Size
    offset: int = -1


class _Shelf:
    """Keeps tensors on the CPU, and beyond a limit in a nameless file."""

    def __init__(self, limit_bytes: int) -> None:
        self._room = limit_bytes
        self._file: BinaryIO | None = None

    def put(self, tensor: Tensor) -> _Stored:
        tensor = tensor.cpu()
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # a view would keep all of what it is a view of
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            return _Stored(tensor, tensor.shape)
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives until `close`, and has no name
        offset = self._file.seek(0, 2)
        self._file.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        return _Stored(tensor.new_empty(0), tensor.shape, offset)

    def get(self, stored: _Stored) -> Tensor:
        if self._file is None or stored.offset < 0:
            return stored.tensor
        tensor = stored.tensor.new_empty(stored.shape)
        self._file.seek(stored.offset)
        self._file.readinto(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[attr-defined]
        return tensor

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _is(tensor: Tensor, windows: Tensor) -> bool:
    """Tell whether a tensor is the windows, not only equal to them."""
    same_place = tensor.data_ptr() == windows.data_ptr() and tensor.device == windows.device
    return same_place and (tensor.shape, tensor.stride()) == (windows.shape, windows.stride())


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a structure of tuples, lists, dicts and dataclasses with its leaves changed."""
    if isinstance(tree, Tensor | _Stored | _Image):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(value, change) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(value, change) for value in tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        return dataclasses.replace(tree, **{name: _mapped(getattr(tree, name), change) for name in names})
    return tree
