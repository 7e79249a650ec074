"""How the images of two trainings are prepared: weights know images that looked as those of their own training."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.plan import Plan, read_plan
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings
from medsegdiff_cli.paths import RUN_PLAN
from medsegdiff_cli.preprocessing.transform_settings import transform_settings

log = logging.getLogger(__name__)

# What images can look different by; statistics of the dataset itself (mean, percentiles) are meant to differ.
_CHOICES = ("clip_low", "clip_high", "equalise_gamma")
_ASPECTS: dict[str, Callable[[TransformSettings], Any]] = {
    "normalisation": lambda settings: " ".join(dict.fromkeys(_words(channel) for channel in settings.channels)),
    "copies of each channel": lambda settings: settings.channel_copies,
    "crop": lambda settings: settings.crop,
    "geometry": lambda settings: settings.geometry,
    "spacing_mm": lambda settings: _rounded(settings.spacing_mm),
    "size_voxels": lambda settings: settings.size_voxels,
    "keep_aspect": lambda settings: settings.keep_aspect,
    "centre_crop": lambda settings: settings.centre_crop,
}


def warn_of_other_preparation(parent: Path | None, plan: Plan, config: str) -> None:
    """Say when images come to the network otherwise than those of the run that training starts from.

    Args:
        parent: that run's fold folder; None where there is none.
        config: of the new training.
    """
    if parent is None:
        return
    there = transform_settings(read_plan(parent / RUN_PLAN), read_run(parent).config)
    here = transform_settings(plan, config)
    changed = differences(there, here)
    if changed:
        log.warning(
            "images are prepared otherwise than those of %s: %s; for the same preparation: msd plan %s --like RUN "
            "--plans-name NAME, then --plans-name NAME",
            parent.parent.name,
            "; ".join(changed),
            plan.dataset,
        )


def differences(there: TransformSettings, here: TransformSettings) -> list[str]:
    """Return what differs, in words: `crop nonzero, there none`."""
    pairs = {name: (look(there), look(here)) for name, look in _ASPECTS.items()}
    return [f"{name} {new}, there {old}" for name, (old, new) in pairs.items() if old != new]


def _words(channel: ChannelScheme) -> str:
    chosen = [f"{key} {channel.statistics[key]:g}" for key in _CHOICES if key in channel.statistics]
    return f"{channel.scheme} ({', '.join(chosen)})" if chosen else channel.scheme


def _rounded(spacing: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
    return spacing and tuple(value and round(value, 3) for value in spacing)
