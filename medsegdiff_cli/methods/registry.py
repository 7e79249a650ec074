"""All methods by name. A new method is one file and one line here; nothing is imported until it is used."""

from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from medsegdiff_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from medsegdiff_cli.methods.base import Method


@dataclass(frozen=True)
class MethodEntry:
    """A registry line.

    Attributes:
        target: "module:Class", resolved on first use.
        title: one line for people.
        source: paper (or origin) of the idea.
        preset: settings that make this name out of its class.
        n_dims: configurations it supports.
    """

    target: str
    title: str
    source: str
    preset: dict[str, Any] = field(default_factory=dict)
    n_dims: tuple[int, ...] = (2, 3)

    def load(self) -> "type[Method]":
        """Import the class."""
        loaded: type[Method] = resolve_name(self.target)
        return loaded


METHODS: dict[str, MethodEntry] = {
    "supervised": MethodEntry(
        "medsegdiff_cli.methods.supervised:Supervised",
        "U-Net trained on labels only: the baseline of every other method",
        "ADM U-Net: Dhariwal & Nichol 2021",
    ),
}


def find_method(name: str) -> MethodEntry:
    """Return a registry line.

    Raises:
        UsageError: no such method.
    """
    if name not in METHODS:
        raise UsageError(f"no method '{name}'", where="METHOD", fix=did_you_mean(name, METHODS))
    return METHODS[name]
