"""Version 1 spelling of dataset.json (Decathlon, nnU-Net v1): `modality`, labels {"0": "background"}."""

from collections.abc import Mapping
from typing import Any

from medsegdiff_cli.errors import InputDataError


def labels_by_name(labels: Any, where: str) -> dict[str, int | list[int]]:
    """Return class name to value (or values of a region), whichever way round `labels` is written.

    Raises:
        InputDataError: neither way.
    """
    if not isinstance(labels, dict):
        raise InputDataError(f"labels must be a mapping, not {labels!r:.60}", where=where)
    if all(isinstance(value, str) and key.lstrip("-").isdigit() for key, value in labels.items()):
        by_name: dict[str, int | list[int]] = {}
        for key, name in labels.items():
            # The tasks spell the background in several ways; two values may even share a name.
            name = "background" if int(key) == 0 else name
            by_name[f"{name}_{key}" if name in by_name else name] = int(key)
        return by_name
    try:
        return {
            name: [int(v) for v in value] if isinstance(value, list) else int(value) for name, value in labels.items()
        }
    except (TypeError, ValueError):
        raise InputDataError(f"labels are neither name to value nor value to name: {labels}", where=where) from None


def channel_names_of(header: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names in `channel_names` or `modality`, in the order of their numbers."""
    names = header.get("channel_names") or header.get("modality")
    if not isinstance(names, dict) or not names:
        return None
    return tuple(str(names[key]) for key in sorted(names, key=int))


def text_of(header: Mapping[str, Any], *keys: str) -> str:
    """Return the first of `keys` that holds a text."""
    return next((header[key].strip() for key in keys if isinstance(header.get(key), str)), "")
