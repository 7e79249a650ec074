"""Label table: how a vendor's label values become nnU-Net's consecutive 0..N, with ignore as N + 1."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medsegdiff_cli.artifacts.label_scheme import label_scheme_from_json
from medsegdiff_cli.errors import InputDataError, UsageError

_MOST_UNDECLARED_CLASSES = 32


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """What is written instead of each source value.

    Attributes:
        labels, regions_class_order, source_label_values: as they go into dataset.json.
        target_of: source value to written value; unused when there is a threshold.
        threshold: everything above it is the one foreground class.
    """

    labels: Mapping[str, int | list[int]]
    target_of: Mapping[int, int]
    regions_class_order: list[int] | None = None
    source_label_values: Mapping[str, int | list[int]] = field(default_factory=dict)
    threshold: float | None = None

    def apply(self, label: np.ndarray, where: str) -> np.ndarray:
        """Renumber a label map.

        Args:
            label: any shape; integers, or any real numbers when there is a threshold.

        Returns:
            uint8 (uint16 with more than 255 classes) of the same shape.

        Raises:
            InputDataError: values that are not in the table, counted.
        """
        if self.threshold is not None:
            return (label > self.threshold).astype(np.uint8)
        unknown = {value: n for value, n in count_values(label).items() if value not in self.target_of}
        if unknown:
            raise _undeclared(unknown, max(self.target_of), label.size, where)
        known = np.array(sorted(self.target_of))
        written = np.array([self.target_of[value] for value in known.tolist()])
        written = written.astype(np.uint8 if written.max() <= np.iinfo(np.uint8).max else np.uint16)
        if written.dtype == label.dtype and np.array_equal(known, written):
            return label
        result = np.empty(label.shape, dtype=written.dtype)
        for position, part in enumerate(label):
            result[position] = written[np.searchsorted(known, part)]
        return result


def count_values(label: np.ndarray) -> Counter[int]:
    """Return how often each value occurs, counted slice by slice to keep memory low."""
    counts: Counter[int] = Counter()
    for part in label:
        values, numbers = np.unique(part, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return counts


def table_of_declared(
    labels: Mapping[str, int | list[int]], regions_class_order: list[int] | None, where: str
) -> LabelTable:
    """Build the table of a dataset.json: values become consecutive, regions and ignore are kept.

    Raises:
        InputDataError: the declared labels contradict each other.
    """
    scheme = label_scheme_from_json(dict(labels), regions_class_order, where)
    target_of = {value: index for index, value in enumerate(scheme.values)}
    if scheme.ignore_value is not None:
        target_of[scheme.ignore_value] = scheme.ignore_index
    order = regions_class_order if scheme.regions is not None else None
    if order is not None and not set(order) <= set(target_of):
        raise InputDataError(f"regions_class_order {order} names values that no label has", where=where)
    return LabelTable(
        labels={name: _renumber(value, target_of) for name, value in labels.items()},
        target_of=target_of,
        regions_class_order=None if order is None else [target_of[value] for value in order],
        source_label_values={} if all(v == t for v, t in target_of.items()) else dict(labels),
    )


def table_of_map(label_map: Mapping[int, str], threshold: float | None) -> LabelTable:
    """Build the table of `--label-map` and `--threshold`: classes in the order of their smallest source value.

    Raises:
        UsageError: 0 mapped to a class, or a threshold together with several classes.
    """
    values_of: dict[str, list[int]] = {}
    for value, name in sorted(label_map.items()):
        if (value == 0) != (name == "background") and value == 0:
            raise UsageError(f"0 is mapped to '{name}'", where="--label-map", fix="0 is the background")
        values_of.setdefault(name, []).append(value)
    values_of.pop("background", None) if values_of.get("background") == [0] else None
    background = values_of.pop("background", [])
    ignored = values_of.pop("ignore", [])
    if threshold is not None and (len(values_of) > 1 or ignored):
        fix = "leave out --threshold, or map one class only"
        raise UsageError(f"a threshold makes one class, not {sorted(label_map.values())}", where="--threshold", fix=fix)
    names = list(values_of) or ["foreground"]
    target_of = {0: 0, **dict.fromkeys(background, 0)}
    for index, name in enumerate(names, start=1):
        target_of.update(dict.fromkeys(values_of.get(name, [1]), index))
    target_of.update(dict.fromkeys(ignored, len(names) + 1))
    labels: dict[str, int | list[int]] = {"background": 0}
    labels.update({name: index for index, name in enumerate(names, start=1)})
    if ignored:
        labels["ignore"] = len(names) + 1
    return LabelTable(
        labels=labels,
        target_of=target_of,
        source_label_values={n: v[0] if len(v) == 1 else v for n, v in values_of.items()},
        threshold=threshold,
    )


def table_of_found(counts: Mapping[int, int]) -> LabelTable:
    """Build the table of labels that nobody declared: one value is "foreground", several are "label_V".

    Raises:
        InputDataError: the values look like greys or need names.
    """
    values = sorted(set(counts) - {0})
    if not values:
        return table_of_map({1: "foreground"}, None)
    if len(values) == 1:
        return table_of_map({values[0]: "foreground"}, None)
    others = {value: counts[value] for value in values[:-1]}
    total = sum(counts.values())
    if values[-1] == 255 and sum(others.values()) <= counts[255]:
        raise _undeclared(others, 255, total, "all label files together")
    if len(values) > _MOST_UNDECLARED_CLASSES or values[0] < 0:
        raise _undeclared(others, values[-1], total, "all label files together")
    return table_of_map({value: f"label_{value}" for value in values}, None)


def _renumber(value: int | list[int], target_of: Mapping[int, int]) -> int | list[int]:
    return [target_of[v] for v in value] if isinstance(value, list) else target_of[value]


def _undeclared(unknown: Mapping[int, int], largest_known: int, n_voxels: int, where: str) -> InputDataError:
    n = sum(unknown.values())
    listed = ", ".join(f"{value} ({unknown[value]}x)" for value in sorted(unknown)[:4])
    listed += ", ..." if len(unknown) > 4 else ""
    what = f"{len(unknown)} label values without a class in {n} voxels ({100 * n / n_voxels:.2g} %): {listed}"
    if min(unknown) > 0 and max(unknown) < largest_known:
        fix = (
            f"if these are greys from resizing, add --threshold {largest_known // 2}; "
            "if they are classes, name them with --label-map VALUE:NAME"
        )
    else:
        fix = "name them with --label-map VALUE:NAME (VALUE:background and VALUE:ignore are understood)"
    return InputDataError(what, where=where, fix=fix)
