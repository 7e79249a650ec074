"""Plans: what is written is read back, and whatever a person or an attacker writes is a plan or a usage error."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegdiff_cli.artifacts.plan import Plan, changed_keys, read_plan, stored_digest, write_plan
from medsegdiff_cli.errors import UsageError

few = settings(max_examples=40, deadline=None, derandomize=True)
sizes, edges = st.integers(1, 512), st.floats(1e-3, 1e3)
words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)


@st.composite
def configurations(draw: st.DrawFn, axes: int, of_images: int) -> dict[str, Any]:
    per_axis = lambda values, n=axes: st.lists(values, min_size=n, max_size=n)  # noqa: E731
    return {
        "spacing_mm": draw(st.none() | per_axis(st.none() | edges, of_images)),
        "median_shape_voxels": draw(per_axis(sizes, of_images)),
        "patch_size_voxels": draw(per_axis(sizes)),
        "batch_size": draw(sizes),
        "strides": draw(st.lists(per_axis(st.sampled_from([1, 2])), max_size=6)),
        "batch_dice": draw(st.booleans()),
        "store_dtype": draw(st.sampled_from(["float16", "float32"])),
    }


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.sampled_from([2, 3]))
    found = {"2d": draw(configurations(2, axes))} | ({"3d": draw(configurations(3, 3))} if axes == 3 else {})
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True).filter(lambda found: "background" not in found))
    kinds = st.sampled_from(["zscore", "zscore_dataset", "ct", "rescale_0_1", "rgb_0_1", "quantile", "none"])
    return {
        "dataset": draw(words),
        "fingerprint_digest": draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        "file_ending": draw(st.sampled_from([".nii.gz", ".png", ".nrrd"])),
        "labels": {"background": 0} | {name: number for number, name in enumerate(names, 1)},
        "channels": draw(
            st.lists(st.fixed_dictionaries({"name": words, "normalisation": kinds}), min_size=1, max_size=3)
        ),
        "geometry": draw(st.sampled_from(["spacing", "resize"])),
        "transpose": draw(st.permutations(range(axes))),
        "mirror_axes": draw(st.lists(st.integers(0, axes - 1), unique=True)),
        "default_config": draw(st.sampled_from(sorted(found))),
        "memory_bytes": draw(st.integers(1, 2**45)),
        "configurations": found,
        "explanation": draw(st.lists(words, max_size=3)),
    }


def written_and_read(plan: Plan) -> tuple[Plan, str]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plans.yaml"
        write_plan(path, plan)
        return read_plan(path), stored_digest(path)


@few
@given(plans())
def test_a_plan_is_what_was_written(content) -> None:
    plan = Plan.model_validate(content)
    again, digest = written_and_read(plan)
    assert again == plan
    assert changed_keys(plan, again) == []
    assert digest == plan.digest() == again.digest()


@few
@given(plans(), words)
def test_a_reason_changes_no_digest_and_a_number_does(content, reason) -> None:
    plan = Plan.model_validate(content)
    assert plan.model_copy(update={"explanation": (reason,)}).digest() == plan.digest()
    other = plan.model_copy(update={"memory_bytes": plan.memory_bytes + 1})
    assert other.digest() != plan.digest()
    assert changed_keys(plan, other) == ["memory_bytes"]


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words
    | st.sampled_from(["!!python/object/apply:os.system ['x']", "__import__('os')", "{{ 7*7 }}", "torch.nn.Linear"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value of nested dictionaries and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


@pytest.mark.fault("F78")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(plans(), st.randoms(use_true_random=False), st.sampled_from(["replace", "remove", "add"]), junk)
def test_whatever_is_edited_a_plan_is_read_or_refused_with_words(content, random, edit, value) -> None:
    content = copy.deepcopy(content)
    *way, key = random.choice(places(content))
    parent: Any = content
    for step in way:
        parent = parent[step]
    if edit == "replace":
        parent[key] = value
    elif edit == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[f"{key}_x"] = value
    else:
        parent.append(value)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plans.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        try:
            plan = read_plan(path)
        except UsageError:
            return
        assert written_and_read(plan)[0] == plan
