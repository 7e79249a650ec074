"""Along which axes augmentation may mirror."""

import re
from collections.abc import Sequence

from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint

_SIDES = {"left", "right", "l", "r", "lt", "rt", "lh", "rh"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_OPPOSITES = ({"L", "R"}, {"A", "P"}, {"S", "I"})


def choose_mirror_axes(
    cases: Sequence[CaseFingerprint], class_names: Sequence[str], transpose: Sequence[int]
) -> tuple[tuple[int, ...], str]:
    """Return axes of the plan, and the reason.

    An axis of a volume may be mirrored when the cases point both ways along it (codes such as R and L), and it is
    not the left-right axis of a dataset whose classes are called left or right. Photographs have no anatomical
    axes: left and right may be exchanged (eyes, hands, views come in both), up and down may not.
    """
    sided = next((name for name in class_names if names_a_side(name)), None)
    codes = [case.orientation for case in cases]
    if not any(codes):
        if len(transpose) == 2 and not all(case.has_physical_spacing for case in cases):
            if sided:
                return (), f"No mirroring, because the class '{sided}' names a side."
            return (1,), "Mirroring left to right only: photographs come in both, but have an upside."
        return (), "No mirroring, because nothing shows that the orientation varies."
    axes, kept_by_side = [], False
    for axis, source in enumerate(transpose):
        found = {code[source] for code in codes if code}
        pair = next((pair for pair in _OPPOSITES if pair <= found), None)
        if pair == {"L", "R"} and sided:
            kept_by_side = True
        elif pair:
            axes.append(axis)
    if axes:
        return tuple(axes), f"Mirroring along axes {axes}, along which the cases point both ways."
    if kept_by_side:
        return (), f"No mirroring, because the class '{sided}' names a side."
    return (), f"No mirroring, because all cases have one orientation ({', '.join(sorted(set(codes)))})."


def names_a_side(name: str) -> bool:
    """Tell whether a class name says left or right (`left_lung`, `KidneyRight`, `hippocampus_l`)."""
    words = [word.lower() for word in _WORDS.findall(name)]
    return any(word in _SIDES or word.startswith(("left", "right")) for word in words)
