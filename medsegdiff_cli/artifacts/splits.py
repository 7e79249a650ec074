"""Splits: which cases train and which validate, per fold; nnU-Net's `splits_final.json`."""

from collections.abc import Sequence
from pathlib import Path

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.errors import InputDataError, UsageError


class Fold(StrictModel):
    """Case ids of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


class Splits(StrictModel):
    """All folds."""

    folds: tuple[Fold, ...]

    def fold(self, name: str) -> Fold:
        """Return fold `0`, `1`, ...; `all` trains on every case and validates on none.

        Raises:
            UsageError: there is no such fold.
        """
        if name == "all":
            everything = sorted({case for fold in self.folds for case in (*fold.train, *fold.val)})
            return Fold(train=tuple(everything), val=())
        if name.isascii() and name.isdigit() and int(name) < len(self.folds):
            return self.folds[int(name)]
        raise UsageError(f"no fold '{name}'", where="--fold", fix=f"choose 0 to {len(self.folds) - 1}, or all")


def read_splits(path: Path, known_cases: Sequence[str] | None = None) -> Splits:
    """Read nnU-Net's list of {"train": [...], "val": [...]}.

    Args:
        known_cases: labelled cases of the dataset; None leaves unknown names be.

    Raises:
        InputDataError: unknown cases, or a case on both sides of a fold.
    """
    splits = validate(Splits, {"folds": read_json(path)}, str(path), InputDataError)
    for index, fold in enumerate(splits.folds):
        used = {*fold.train, *fold.val}
        unknown = sorted(used - set(used if known_cases is None else known_cases))
        both = sorted(set(fold.train) & set(fold.val))
        if unknown or both:
            problem = f"unknown cases {unknown[:5]}" if unknown else f"cases {both[:5]} both train and validate"
            raise InputDataError(f"fold {index}: {problem}", where=str(path), fix="mend or delete the file")
    return splits


def write_splits(path: Path, splits: Splits) -> None:
    """Write nnU-Net's format atomically."""
    atomic.write_json(path, [fold.model_dump(mode="json") for fold in splits.folds])
