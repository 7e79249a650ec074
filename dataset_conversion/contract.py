"""What every converter shares with its callers: the description, the options and the report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from medsegdiff_cli.artifacts.document import StrictModel
from medsegdiff_cli.errors import UsageError

# Every converter understands these: the shared writer obeys them.
COMMON_OPTIONS = frozenset(
    {"name", "overwrite", "licence", "domain", "file_ending", "channel_names", "workers", "fix_affine"}
)

_FLAGS = {"group_regex": "--group", "channel_names": "--channel"}


@dataclass(frozen=True, kw_only=True)
class FormatInfo:
    """A converter's description.

    Attributes:
        reads: one paragraph: the files it expects.
        example: one command line.
        options: the names in `Options` that it understands beside `COMMON_OPTIONS`.
        licence, citation: of the data, where the format is one published dataset.
    """

    name: str
    title: str
    reads: str
    example: str
    options: frozenset[str] = frozenset()
    licence: str = ""
    citation: str = ""


class Options(StrictModel):
    """What `msd convert` offers. Globs are relative to the source folder.

    Attributes:
        name: the dataset's name; that of the destination folder when empty.
        images, labels: which files are images and labels.
        label_suffix: what a label's case name has more than its image's ("_mask").
        label_map: value in the label files to class name; several values may share a name, "ignore" is kept apart.
        threshold: values above it are foreground.
        extra_labels: observer's name to the suffix of that observer's labels.
        group_regex: patient in the file name: the first group, else the whole match.
        domain: scanner, site or source of all cases.
        test_list: file with one case (or group) a line that goes to imagesTs.
        test_count: number of labelled cases that go to imagesTs, drawn with `seed`; whole groups.
        test_as_unlabelled: the source's test images become unlabelled training images.
        channel_names: one a channel; "CT" chooses the CT normalisation.
        file_ending: ending of all files written; chosen by the data when None.
        workers: files that are read and written at the same time.
        fix_affine: largest shear in degrees that gives way to the nearest rigid grid; 0 refuses sheared images.
    """

    name: str = ""
    overwrite: bool = False
    licence: str = ""
    images: str | None = None
    labels: str | None = None
    label_suffix: str = ""
    label_map: Mapping[int, str] = Field(default_factory=dict)
    threshold: float | None = None
    extra_labels: Mapping[str, str] = Field(default_factory=dict)
    group_regex: str | None = None
    domain: str = ""
    test_list: Path | None = None
    test_count: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    test_as_unlabelled: bool = False
    channel_names: tuple[str, ...] = ()
    file_ending: str | None = None
    workers: int = Field(default=1, ge=0)
    fix_affine: float = Field(default=0.0, ge=0, le=45)


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes:
        aligned: cases whose label (or channel) lay within a tenth of a voxel and got the image's grid.
        notes: sentences on what was renamed, skipped or set aside.
    """

    format: str
    destination: Path
    n_training: int
    n_test: int
    n_test_labelled: int
    n_unlabelled: int
    channel_names: Mapping[str, str]
    labels: Mapping[str, int | list[int]]
    file_ending: str
    aligned: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain data with a schema version."""
        return {"schema_version": 1, **asdict(self), "destination": str(self.destination)}


Convert = Callable[[Path, Path, Options], ConversionReport]


def refuse_foreign_options(info: FormatInfo, options: Options) -> None:
    """Refuse options that this converter would ignore.

    Raises:
        UsageError: names every such option.
    """
    given = {name for name in Options.model_fields if getattr(options, name) != getattr(Options(), name)}
    foreign = sorted(given - info.options - COMMON_OPTIONS)
    if foreign:
        flags = ", ".join(_FLAGS.get(name, "--" + name.replace("_", "-")) for name in foreign)
        raise UsageError(
            f"'{info.name}' does not understand {flags}",
            where=f"msd convert {info.name}",
            fix="leave the option out, or use `msd convert folder`",
        )
