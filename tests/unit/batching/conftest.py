"""A small preprocessed store of seeded phantoms."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batching_phantoms import write_case

from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., PreprocessedStore]:
    """Return a function that writes `n` cases with two boxes each; `unlabelled` ones come on top."""

    def build(shape: tuple[int, ...] = (12, 20, 16), n: int = 4, unlabelled: int = 0) -> PreprocessedStore:
        store, rng = PreprocessedStore(tmp_path / "store"), np.random.default_rng(0)
        for index in range(n + unlabelled):
            label = np.zeros(shape, np.uint8)
            label[(slice(2, 6),) * len(shape)] = 1
            label[(slice(7, 10),) * len(shape)] = 2
            image = rng.normal(size=(2, *shape)).astype(np.float16)
            name = f"case_{index}" if index < n else f"unlabelled_{index - n}"
            write_case(store, name, label if index < n else None, image)
        return store

    return build
