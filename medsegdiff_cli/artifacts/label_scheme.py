"""Label scheme: how the integers of a dataset's label files map to the classes that a method learns.

Files keep their own values (for example 0, 205, 420); inside, labels are the indices 0..K, the ignored voxels K + 1.
Regions (nnU-Net) are classes made of several values; they may overlap, so they are learnt with sigmoids.
"""

from dataclasses import dataclass

import numpy as np

from medsegdiff_cli.errors import InputDataError

_LARGEST_VALUE = 65_535


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """The classes of a dataset.

    Attributes:
        class_names: names of the method's output classes: with background first when exclusive, else the regions.
        values: the file values of the inner indices 0..K; values[0] is the background.
        regions: inner indices that each region consists of, in class order; None when classes exclude each other.
        region_values: file value that each region is painted with on export, in painting order (the class order).
        ignore_value: file value of voxels nobody annotated, or None.
    """

    class_names: tuple[str, ...]
    values: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...] | None = None
    region_values: tuple[int, ...] | None = None
    ignore_value: int | None = None

    @property
    def classes_are_exclusive(self) -> bool:
        """True for softmax classes, False for overlapping regions."""
        return self.regions is None

    @property
    def ignore_index(self) -> int:
        """Inner index of ignored voxels."""
        return len(self.values)

    @property
    def foreground_names(self) -> tuple[str, ...]:
        """Names of the classes that scores are given for."""
        return self.class_names[1:] if self.classes_are_exclusive else self.class_names

    def encode(self, label: np.ndarray, where: str = "label") -> np.ndarray:
        """Map file values to inner indices.

        Args:
            label: integers, any shape.
            where: file or case, for the error.

        Returns:
            uint8 (uint16 with more than 254 classes) of the same shape.

        Raises:
            InputDataError: a value is not in the scheme.
        """
        known = [*self.values, *([] if self.ignore_value is None else [self.ignore_value])]
        found, inverse = np.unique(label, return_inverse=True)
        unknown = sorted(set(found.tolist()) - set(known))
        if unknown:
            listed = ", ".join(f"{value} ({int((label == value).sum())}x)" for value in unknown[:10])
            raise InputDataError(
                f"label values {unknown[:10]} are not declared (declared: {known}; found: {listed})",
                where=where,
                fix="add them to `labels` in dataset.json, or correct the file",
            )
        dtype = np.uint8 if len(known) <= 255 else np.uint16
        index_of = {value: index for index, value in enumerate(known)}
        table = np.array([index_of[value] for value in found.tolist()], dtype=dtype)
        return table[inverse].reshape(label.shape)

    def decode(self, exported: np.ndarray) -> np.ndarray:
        """Map exported indices to file values.

        Args:
            exported: class indices when exclusive; else 0 for background and k + 1 where region k was painted last.

        Returns:
            uint8 or uint16 of the same shape.
        """
        values = self.values if self.region_values is None else (self.values[0], *self.region_values)
        return np.array(values, dtype=np.uint8 if max(values) <= 255 else np.uint16)[exported]

    def file_values(self) -> dict[str, tuple[int, ...]]:
        """Return, for every scored class, the file values it consists of."""
        if self.regions is None:
            return {name: (value,) for name, value in zip(self.class_names[1:], self.values[1:], strict=True)}
        return {
            name: tuple(self.values[index] for index in region)
            for name, region in zip(self.class_names, self.regions, strict=True)
        }


def label_scheme_from_json(
    labels: dict[str, int | list[int]], regions_class_order: list[int] | None, where: str
) -> LabelScheme:
    """Build the scheme from `labels` and `regions_class_order` of a dataset.json.

    Raises:
        InputDataError: no background 0, values given twice or too large for uint16, or an order that does not fit
            the regions.
    """
    flat = [v for value in labels.values() for v in (value if isinstance(value, list) else [value])]
    outside = sorted({v for v in (*flat, *(regions_class_order or ())) if not 0 <= v <= _LARGEST_VALUE})
    if outside:
        raise InputDataError(f"label values {outside} are outside of 0 to {_LARGEST_VALUE}", where=where)
    if labels.get("background") != 0:
        raise InputDataError("labels need 'background': 0", where=where)
    ignore = labels.get("ignore")
    if isinstance(ignore, list):
        raise InputDataError("'ignore' must be one integer", where=where)
    classes = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    if any(isinstance(value, list) for value in classes.values()):
        return _with_regions(classes, regions_class_order, ignore, where)
    values = [int(value) for value in classes.values() if not isinstance(value, list)]
    if len({0, *values}) != len(values) + 1 or ignore in (0, *values):
        raise InputDataError(f"label values {[0, *values]} (ignore: {ignore}) are not distinct", where=where)
    ordered = sorted(zip(values, classes, strict=True))
    return LabelScheme(
        class_names=("background", *(name for _, name in ordered)),
        values=(0, *(value for value, _ in ordered)),
        ignore_value=ignore,
    )


def _with_regions(
    classes: dict[str, int | list[int]], order: list[int] | None, ignore: int | None, where: str
) -> LabelScheme:
    if order is None or len(order) != len(classes):
        raise InputDataError(
            f"{len(classes)} regions need a regions_class_order of {len(classes)} values (given: {order})", where=where
        )
    parts = {name: value if isinstance(value, list) else [value] for name, value in classes.items()}
    values = (0, *sorted({int(v) for part in parts.values() for v in part}))
    if 0 in values[1:] or ignore in values:
        raise InputDataError("a region contains the background or the ignore label", where=where)
    return LabelScheme(
        class_names=tuple(parts),
        values=values,
        regions=tuple(tuple(sorted(values.index(int(v)) for v in part)) for part in parts.values()),
        region_values=tuple(int(v) for v in order),
        ignore_value=ignore,
    )
