"""Bundle: a trained run, with one or several folds, as one file to hand on; a zip that ends in `.msd`.

```
manifest.json                        what it is, and size and sha256 of every other member
fold_0/run.json                      the run's record, without paths, command line and names of cases
fold_0/plan.yaml, fold_0/recipe.yaml as in the run folder
fold_0/checkpoints/last.json, fold_0/checkpoints/last.safetensors   the weights that predict; or `best`, and
                                     `best-SAMPLER` for each of the manifest's samplers
```

There is nothing else in it, and nothing that could be executed. The plan holds what a model needs of its dataset's
fingerprint: spacing, statistics of intensities, channels, labels.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import Field

from medsegdiff_cli import __version__, atomic
from medsegdiff_cli.artifacts.archive import Archive, Refused, integrity_errors, opened_archive, write_archive
from medsegdiff_cli.artifacts.checkpoint import Checkpoint, parse_checkpoint
from medsegdiff_cli.artifacts.document import StrictModel, parse, refuse_newer, validate
from medsegdiff_cli.artifacts.plain_data import LARGEST_YAML_BYTES
from medsegdiff_cli.artifacts.run import RunRecord
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.paths import (
    BUNDLE_SUFFIX,
    CHECKPOINTS,
    FOLD_PREFIX,
    MANIFEST_JSON,
    RUN_JSON,
    RUN_PLAN,
    RUN_RECIPE,
    best_of,
)

FORMAT_VERSION = 1
NOT_STATED = "not stated"
_LEFT_OUT = "(not in the bundle)"  # no name of a folder, where one is looked for
_NAME = r"[^\W_][\w.+ -]{0,199}"
_FOLD = r"[A-Za-z0-9-]{1,20}"
_FIX = "get the file again from its author; nothing of it was unpacked"
_DOCUMENTS = (RUN_JSON, RUN_PLAN, RUN_RECIPE)


class Member(StrictModel):
    """Size and sha256 of a member of the archive."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(StrictModel):
    """Content of `manifest.json`.

    Attributes:
        name, dataset: of the run, and the folder of results that it is imported into.
        kind: a pretraining cannot predict; methods start from it.
        checkpoint: which weights it holds, those that the run predicts with.
        samplers: those that have best weights of their own, which are in it, too.
        channels, labels: what the images must hold, and the label values that come out.
        licence, citation, intended_use: the author's words.
        training_cases: images behind each fold, with or without labels.
        members: name to size and sha256.
    """

    format: Literal["msd-bundle"] = "msd-bundle"
    format_version: int = FORMAT_VERSION
    msd_version: str = __version__
    name: str = Field(pattern=f"^{_NAME}$")
    kind: Literal["model", "pretraining"] = "model"
    method: str
    config: Literal["2d", "3d"]
    dataset: str = Field(pattern=f"^{_NAME}$")
    folds: tuple[str, ...] = Field(min_length=1)
    checkpoint: Literal["best", "last"]
    samplers: tuple[Literal["ddpm", "ddim", "dpm++"], ...] = ()
    channels: tuple[str, ...]
    labels: dict[str, int | list[int]]
    licence: str = Field(default=NOT_STATED, max_length=2000)
    citation: str = Field(default=NOT_STATED, max_length=10_000)
    intended_use: str = Field(default=NOT_STATED, max_length=10_000)
    training_cases: dict[str, int]
    members: dict[str, Member]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights of each fold."""
        return (self.checkpoint, *map(best_of, self.samplers))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its directory checked against its manifest.

    Attributes:
        digest: sha256 of the whole file; the bundle's name in provenance.
    """

    path: Path
    digest: str
    manifest: Manifest
    archive: Archive

    def read(self, name: str) -> bytes:
        """Return the verified content of a member.

        Raises:
            IntegrityError: it is not what the manifest says.
        """
        target = BytesIO()
        self.copy(name, target)
        return target.getvalue()

    def copy(self, name: str, target: BinaryIO | None) -> None:
        """Copy a member into a stream and verify it; None only verifies.

        Raises:
            IntegrityError: it is not what the manifest says.
        """
        if self.archive.copy(name, target) != self.manifest.members[name].sha256:
            raise IntegrityError(f"'{name}' does not match its sha256 in the manifest", where=str(self.path), fix=_FIX)

    def verify(self) -> None:
        """Read everything once and compare it with the manifest."""
        for name in self.manifest.members:
            self.copy(name, None)

    def folds(self, wanted: Sequence[str] = ()) -> "list[BundledFold]":
        """Return the folds wanted, or all.

        Raises:
            UsageError: one is not in the bundle.
        """
        known = self.manifest.folds
        if missing := [fold for fold in wanted if fold not in known]:
            raise UsageError(
                f"folds {missing} are not in the bundle", where=str(self.path), fix=f"there: {list(known)}"
            )
        return [BundledFold(self, fold) for fold in (wanted or known)]


@dataclass(frozen=True)
class BundledFold:
    """The files of one fold in a bundle, as `FoldFolder` has them in a run folder."""

    bundle: Bundle
    fold: str

    @property
    def folder(self) -> Path:
        """The fold's name for people and provenance: BUNDLE.msd/fold_K."""
        return self.bundle.path / f"{FOLD_PREFIX}{self.fold}"

    def document(self, name: str) -> Any:
        """Return the content of a JSON or YAML file."""
        form: Literal["JSON", "YAML"] = "JSON" if name.endswith(".json") else "YAML"
        return parse(self._read(name), form, str(self.folder / name), IntegrityError)

    def checkpoints(self) -> list[str]:
        """Return which weights are there."""
        return list(self.bundle.manifest.weights)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the weights of that name."""
        header = self.document(f"{CHECKPOINTS}/{name}.json")
        weights = self._read(f"{CHECKPOINTS}/{name}.safetensors")
        return parse_checkpoint(header, weights, str(self.folder / CHECKPOINTS / name))

    def _read(self, name: str) -> bytes:
        return self.bundle.read(f"{FOLD_PREFIX}{self.fold}/{name}")


def members_of_fold(fold: str, weights: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all members that belong to a fold with these weights."""
    files = (f"{CHECKPOINTS}/{name}{ending}" for name in weights for ending in (".json", ".safetensors"))
    return tuple(f"{FOLD_PREFIX}{fold}/{name}" for name in (*_DOCUMENTS, *files))


def without_personal_data(run: RunRecord, *, keep_case_names: bool = False) -> RunRecord:
    """Return a run's record without paths, command line and, unless they are kept, names of cases.

    The numbers of cases stay; a name becomes `(train 1)`, `(val 1)` and so on.
    """
    changes: dict[str, Any] = {"dataset_path": _LEFT_OUT, "command": _LEFT_OUT}
    if not keep_case_names:
        for part in ("train", "val"):
            count = len(getattr(run, f"{part}_cases"))
            changes[f"{part}_cases"] = tuple(f"({part} {number})" for number in range(1, count + 1))
    return run.model_copy(update=changes)


def write_bundle(path: Path, facts: Mapping[str, Any], members: Mapping[str, bytes | Path]) -> Manifest:
    """Write a bundle atomically; the same content makes the same bytes.

    Args:
        facts: the manifest's fields but for `members`.
        members: name to content, or to the file that holds it.

    Returns:
        the manifest.

    Raises:
        UsageError: a text or a name that no manifest may hold.
        ResourceError: the disk is full or fails.
    """
    sizes = {name: _size_and_digest(members[name]) for name in sorted(members)}
    _refuse_unprintable(facts, UsageError, "bundle")
    manifest = validate(Manifest, {**facts, "members": sizes}, "bundle")
    _check_members(manifest, {name: entry["bytes"] for name, entry in sizes.items()})
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_archive(path, {MANIFEST_JSON: text.encode(), **{name: members[name] for name in sizes}})
    return manifest


@contextmanager
def opened_bundle(path: Path) -> Iterator[Bundle]:
    """Yield a bundle: names, sizes and the manifest are checked now, content as it is read.

    Raises:
        IntegrityError: it is damaged or not to be trusted.
        UsageError: a newer msd wrote it.
    """
    with opened_archive(path) as archive:
        yield Bundle(path, atomic.digest_of_file(path), _manifest_of(archive), archive)


def _manifest_of(archive: Archive) -> Manifest:
    path, where = archive.path, f"{archive.path}: {MANIFEST_JSON}"
    content = parse(archive.read(MANIFEST_JSON, LARGEST_YAML_BYTES), "JSON", where, IntegrityError)
    with integrity_errors(path):
        if not isinstance(content, dict) or content.get("format") != "msd-bundle":
            raise Refused("no bundle of msd: the manifest does not say so")
    refuse_newer(content, "format_version", FORMAT_VERSION, str(path))
    _refuse_unprintable(content, IntegrityError, where)
    manifest = validate(Manifest, content, where, IntegrityError)
    with integrity_errors(path):
        _check_members(manifest, {name: size for name, size in archive.sizes.items() if name != MANIFEST_JSON})
    return manifest


def is_bundle(path: Path) -> bool:
    """Return whether a file is called like a bundle."""
    return path.suffix.lower() == BUNDLE_SUFFIX


def _size_and_digest(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, Path):
        return {"bytes": content.stat().st_size, "sha256": atomic.digest_of_file(content)}
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _check_members(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuse members that are missing, unknown, of another size, or larger than a document may be."""
    folds = manifest.folds
    if len(set(folds)) < len(folds) or not all(re.fullmatch(_FOLD, fold) for fold in folds):
        raise Refused(f"impossible names of folds: {list(folds)!r:.100}")
    expected = {name for fold in folds for name in members_of_fold(fold, manifest.weights)}
    if foreign := sorted({*sizes, *manifest.members} - expected):
        raise Refused(f"{foreign[0]!r:.100} is nothing that a bundle holds")
    if missing := sorted(expected - (sizes.keys() & manifest.members.keys())):
        raise Refused(f"{missing[0]!r:.100} is missing in the archive or the manifest")
    for name, size in sizes.items():
        if size != manifest.members[name].bytes:
            raise Refused(f"{name!r:.100} has {size} bytes, the manifest says {manifest.members[name].bytes}")
        if size > LARGEST_YAML_BYTES and not name.endswith(".safetensors"):
            raise Refused(f"{name!r:.100} has {size} bytes; at most {LARGEST_YAML_BYTES} are read")


def _refuse_unprintable(content: Any, error: type[IntegrityError | UsageError], where: str) -> None:
    """Refuse control characters, which could forge what a terminal shows."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and not all(letter.isprintable() or letter in "\n\t" for letter in value):
            raise error(f"control characters in {value!r:.100}", where=where, fix="use plain text")
        if isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
