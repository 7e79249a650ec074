"""Patch and batch of a training, from a plan, a scale and measured memory."""

import math
from typing import Any

import pytest

from medsegdiff_cli.artifacts.plan import ChannelPlan, Configuration, Plan
from medsegdiff_cli.errors import ResourceError, UsageError
from medsegdiff_cli.planning.resolve import resolve_batch
from medsegdiff_cli.planning.scales import SCALES

HALVES = ((2, 2, 2),) * 3


def _plan(patch: tuple[int, ...], median: tuple[int, ...], batch: int = 4, memory: int = 10**12) -> Plan:
    configuration = Configuration(
        spacing_mm=(1.0, 1.0, 1.0),
        median_shape_voxels=median,
        patch_size_voxels=patch,
        batch_size=batch,
        strides=HALVES,
        batch_dice=False,
    )
    return Plan(
        dataset="Dataset001_Phantom",
        fingerprint_digest="",
        file_ending=".nii",
        labels={"background": 0, "organ": 1},
        channels=(ChannelPlan(name="MRI", normalisation="zscore"),),
        geometry="spacing",
        transpose=(0, 1, 2),
        default_config="3d",
        memory_bytes=memory,
        configurations={"3d": configuration},
    )


def _bytes(patch: tuple[int, ...], batch: int, strides: Any) -> int:
    return 5_000_000 + 1000 * batch * math.prod(patch)


def test_full_scale_takes_the_plans_patch_and_batch() -> None:
    resolved = resolve_batch(_plan((40, 56, 40), (36, 50, 35), batch=9), "3d", "full", measure=_bytes)
    assert (resolved.patch_size, resolved.batch_size, resolved.strides) == ((40, 56, 40), 9, HALVES)
    assert resolved.forecast_bytes == 5_000_000 + 1000 * 9 * 40 * 56 * 40
    assert resolved.notes == ()


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_small_scales_limit_the_patch_and_say_so(scale: Any) -> None:
    resolved = resolve_batch(_plan((128, 128, 128), (482, 512, 512)), None, scale)
    assert math.prod(resolved.patch_size) <= SCALES[scale, 3].max_patch_voxels
    assert all(edge % 4 == 0 for edge in resolved.patch_size)
    assert len(resolved.strides) == len(SCALES[scale, 3].channel_mult or ()) - 1
    assert f"Scale '{scale}'" in resolved.notes[0]


def test_the_batch_fills_the_memory_and_never_exceeds_it() -> None:
    memory = 5_000_000 + 1000 * 5 * 64**3 + 1
    resolved = resolve_batch(
        _plan((64, 64, 64), (64, 64, 64), batch=100), None, "full", measure=_bytes, memory_bytes=memory
    )
    assert resolved.batch_size == 5


def test_the_patch_shrinks_until_two_fit() -> None:
    memory = 5_000_000 + 1000 * 2 * 48**3
    resolved = resolve_batch(_plan((64, 64, 64), (64, 64, 64)), None, "full", measure=_bytes, memory_bytes=memory)
    assert (resolved.batch_size, _bytes(resolved.patch_size, 2, ()) <= memory) == (2, True)
    assert all(edge % 8 == 0 for edge in resolved.patch_size)
    assert "limits the patch" in resolved.notes[0]


def test_what_cannot_fit_is_a_resource_error_that_says_what_to_do() -> None:
    with pytest.raises(ResourceError, match="--scale small"):
        resolve_batch(_plan((64, 64, 64), (64, 64, 64)), None, "full", measure=_bytes, memory_bytes=6_000_000)


def test_deeper_networks_than_the_plan_keep_the_resolution() -> None:
    resolved = resolve_batch(_plan((40, 56, 40), (36, 50, 35)), None, "full", n_transitions=5)
    assert (*HALVES, (1, 1, 1), (1, 1, 1)) == resolved.strides


def test_an_asked_patch_is_kept_or_refused_but_never_changed() -> None:
    plan = _plan((64, 64, 64), (64, 64, 64))
    resolved = resolve_batch(plan, None, "small", measure=_bytes, patch_size=(64, 64, 64), batch_size=3, memory_bytes=1)
    assert (resolved.patch_size, resolved.batch_size) == ((64, 64, 64), 3)
    assert "asked for need about" in resolved.notes[0]
    with pytest.raises(UsageError, match=r"for example \[64, 64, 48\]"):
        resolve_batch(plan, None, "full", patch_size=(64, 64, 50))
    with pytest.raises(UsageError, match="give 3 edges"):
        resolve_batch(plan, None, "full", patch_size=(64, 64))
