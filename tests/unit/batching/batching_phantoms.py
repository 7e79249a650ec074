"""Store entries written by hand, whose foreground tables hold every voxel."""

import numpy as np

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore

TWO_CLASSES = LabelScheme(class_names=("background", "liver", "tumour"), values=(0, 1, 2))


def table_of(label: np.ndarray, classes: dict[int, tuple[int, ...]]) -> np.ndarray:
    """Every voxel of every class, in the store's format."""
    rows = [
        np.column_stack([np.full(np.isin(label, members).sum(), index), np.argwhere(np.isin(label, members))])
        for index, members in classes.items()
    ]
    return np.concatenate(rows).astype(np.int32)


def write_case(
    store: PreprocessedStore,
    case: str,
    label: np.ndarray | None,
    image: np.ndarray,
    classes: dict[int, tuple[int, ...]] | None = None,
) -> None:
    properties: dict[str, object] = {"key": "k", "class_voxels": None if label is None else {}}
    if label is not None and label.ndim == 3:
        properties["foreground_slices"] = [z for z in range(len(label)) if label[z].any()]
    table = None if label is None else table_of(label, classes or {1: (1,), 2: (2,)})
    store.folder.mkdir(parents=True, exist_ok=True)
    store.write(case, image=image, label=label, foreground=table, properties=properties)
