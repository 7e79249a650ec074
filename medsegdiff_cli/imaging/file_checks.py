"""Prove that a file holds what its header promises, before SimpleITK decodes it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """What SimpleITK does not tell: whether the file stores one grey channel, and distances in mm."""

    is_grey: bool = False
    has_physical_spacing: bool = True


def check_file(path: Path, ending: str, *, header_only: bool = False) -> StoredFacts:
    """Return what the file stores."""
    return StoredFacts()
