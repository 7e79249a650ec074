"""Task: all that a method knows about data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """What goes into a method and what comes out.

    Attributes:
        n_dims: spatial axes, 2 or 3.
        in_channels: image channels.
        class_names: output classes: background first when exclusive, else the (overlapping) regions.
        classes_are_exclusive: softmax over classes (True) or a sigmoid for each (False).
        ignore: whether some voxels may be unannotated (`Batch.valid` is given then).
    """

    n_dims: int
    in_channels: int
    class_names: tuple[str, ...]
    classes_are_exclusive: bool = True
    ignore: bool = False

    @property
    def n_classes(self) -> int:
        """Number of output channels."""
        return len(self.class_names)
