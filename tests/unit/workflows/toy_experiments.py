"""A declaration of the smallest experiments that still go through every room."""

from pathlib import Path
from typing import Any

import yaml

_CELLS = {"domains": ["A"], "labels": [1]}
TOY: dict[str, Any] = {
    "paper": "toy",
    "title": "A toy",
    "citation": "Nobody, nowhere",
    "cohort": {"shape": [16, 16], "labelled": {"A": 2}, "unlabelled": {"B": 2}, "test": {"A": 2}},
    "plan": {"geometry": "resize", "size_voxels": [16, 16], "normalisation": "zscore", "default_scale": "full"},
    "objective": "diffusion",
    "pretraining": {
        "overrides": {
            "model_channels": 8,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "attention_levels": [],
            "num_head_channels": 8,
            "steps": 2,
            "batch_size": 2,
        }
    },
    "heads": {
        "overrides": {"steps": 2, "batch_size": 1, "pixels": 16, "timesteps": [1, 25], "validate_every_steps": 0}
    },
    "tiers": {
        "quick": {"seeds": 1, "first_seed": 100, "experiments": ["vote"], "labels": [1], "minutes": "seconds"},
        "full": {"seeds": 1, "first_seed": 100, "experiments": ["vote", "gate"], "labels": [1], "minutes": "seconds"},
    },
    "experiments": [
        {
            "id": "vote",
            "claim": "A vote is better",
            "published": "Tab. 0: +1.0",
            "gate": False,
            "criterion": {"kind": "vote-gain", "method": "tedm", "singles": [25], "cells_share": 1.0, **_CELLS},
        },
        {
            "id": "gate",
            "claim": "Nothing is better by more than everything",
            "published": "Tab. 0: +101 | a figure",
            "gate": True,
            "criterion": {"kind": "paired-gain", "method": "tedm", "other": "ledm", "above": 101.0, **_CELLS},
        },
    ],
    "deviations": ["Everything."],
}


def write_toy(folder: Path, **parts: Any) -> Path:
    """Write the declaration, with some of its parts replaced."""
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**TOY, **parts}), encoding="utf-8")
    return path
