"""Which files a prediction is asked for, and the settings that two predictions must share to be the same."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from medsegdiff_cli.artifacts.postprocessing import Step, as_plain_data
from medsegdiff_cli.inference.volume import InferenceSettings


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Which files are written beside the label map, and what all label maps go through.

    Attributes:
        probabilities: one map per class on the native grid, `probabilities/CASE_CLASS`.
        uncertainty: `uncertainty/CASE_entropy` and, with several members, `uncertainty/CASE_variance`.
        members: each member's label map, `members/CASE_NNN`.
        steps: the label map of the members' fused estimates at each step, `steps/CASE_tTTTT`; with `members` also each
            member's, `members/CASE_NNN_tTTTT`.
        postprocessing: of every label map that is written, on the native grid.
    """

    probabilities: bool = False
    uncertainty: bool = False
    members: bool = False
    steps: bool = False
    postprocessing: tuple[Step, ...] = ()


def key_content(inference: InferenceSettings, output: OutputSettings) -> dict[str, Any]:
    """Return all settings that change output bytes, JSON-serialisable."""
    files = asdict(replace(output, postprocessing=()))
    return {
        "inference": asdict(inference),
        "output": {**files, "postprocessing": as_plain_data(output.postprocessing)},
    }
