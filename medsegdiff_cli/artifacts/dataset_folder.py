"""Dataset folder: nnU-Net v2's raw layout, plus what msd adds (nnU-Net ignores it).

```
dataset.json
imagesTr/CASE_0000.nii.gz ...   one file a channel (RGB photographs: one file)
labelsTr/CASE.nii.gz            integers on the image's grid
imagesTs, labelsTs              held-out cases; never used for training
imagesUn                        images without labels, for pretraining
masksTr, masksTs, masksUn       body or brain masks, for normalisation and cropping only
labelsTr_OBSERVER, labelsTs_OBSERVER   further observers' labels
```
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json, validate
from medsegdiff_cli.artifacts.label_scheme import LabelScheme, label_scheme_from_json
from medsegdiff_cli.artifacts.synthesis import Synthesis
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import DATASET_JSON

Part = Literal["Tr", "Ts", "Un"]


class DatasetJson(BaseModel):
    """nnU-Net's dataset.json; unknown keys are kept. Below `description` stand the keys that msd adds.

    Attributes:
        channel_names: channel index (as string) to name; the name chooses the normalisation.
        labels: class name to file value, or to the values that make up a region.
        source_label_values: class name to the value it had in the vendor's files, where conversion renumbered.
        groups: case to patient (or another unit that must not be split between training and validation).
        domains: case to scanner, site or data source.
        unlabelled_test_overlap: "allowed" when images in imagesUn are also test images, as in a published protocol.
        synthetic: True for generated images.
        synthesis: how these were made.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    numTraining: int  # noqa: N815 (nnU-Net's spelling)
    file_ending: str
    regions_class_order: list[int] | None = None
    name: str = ""
    description: str = ""
    licence: str = ""
    citation: str = ""
    source_label_values: dict[str, int | list[int]] = Field(default_factory=dict)
    groups: dict[str, str] = Field(default_factory=dict)
    domains: dict[str, str] = Field(default_factory=dict)
    extra_labels: list[str] = Field(default_factory=list)
    unlabelled_test_overlap: Literal["refused", "allowed"] = "refused"
    synthetic: bool = False
    synthesis: Synthesis | None = None


class _ListedFiles(BaseModel):
    images: tuple[str, ...] = ()
    label: str | None = None


class _Listing(BaseModel):
    """nnU-Net's explicit listing of the training cases: paths, relative to the folder or with variables."""

    dataset: dict[str, _ListedFiles]


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        images: one path a channel, in channel order (a single RGB file for photographs).
        label, mask: None where there is no such file.
        group: patient; the case itself when the dataset names none.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    mask: Path | None = None
    group: str
    domain: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """An opened dataset folder."""

    path: Path
    info: DatasetJson

    @property
    def name(self) -> str:
        """Folder name, for example `Dataset004_Hippocampus`."""
        return self.path.name

    def label_scheme(self) -> LabelScheme:
        """Return the classes.

        Raises:
            InputDataError: the labels contradict each other.
        """
        return label_scheme_from_json(self.info.labels, self.info.regions_class_order, str(self.path / DATASET_JSON))

    def cases(self, part: Part) -> list[CaseFiles]:
        """Return the cases of training (`Tr`), test (`Ts`) or unlabelled (`Un`) images, sorted by id.

        nnU-Net's explicit `dataset` listing replaces imagesTr and labelsTr where it is given.
        """
        listing = (self.info.model_extra or {}).get("dataset")
        if part == "Tr" and listing:
            listed = validate(_Listing, {"dataset": listing}, str(self.path / DATASET_JSON), InputDataError).dataset
            return [self._listed_case(case, files) for case, files in sorted(listed.items())]
        images = images_by_case(self.path / f"images{part}", self.info.file_ending)
        return [
            CaseFiles(
                case=case,
                images=paths,
                label=_existing(self.path / f"labels{part}" / f"{case}{self.info.file_ending}"),
                mask=_existing(self.path / f"masks{part}" / f"{case}{self.info.file_ending}"),
                group=self.info.groups.get(case, case),
                domain=self.info.domains.get(case, ""),
            )
            for case, paths in images.items()
        ]

    def _listed_case(self, case: str, files: _ListedFiles) -> CaseFiles:
        def absolute(text: str) -> Path:
            return (self.path / os.path.expandvars(text)).resolve()

        if not files.images:
            raise InputDataError(f"case '{case}' lists no images", where=str(self.path / DATASET_JSON))
        return CaseFiles(
            case=case,
            images=tuple(absolute(text) for text in files.images),
            label=absolute(files.label) if files.label else None,
            mask=_existing(self.path / "masksTr" / f"{case}{self.info.file_ending}"),
            group=self.info.groups.get(case, case),
            domain=self.info.domains.get(case, ""),
        )


def open_dataset(path: Path) -> DatasetFolder:
    """Open a dataset folder (v1's `modality` is read as `channel_names`).

    Raises:
        InputDataError: dataset.json is missing or wrong.
    """
    file = Path(path) / DATASET_JSON
    content = read_json(file, InputDataError)
    if isinstance(content, dict) and "channel_names" not in content and "modality" in content:
        content["channel_names"] = content["modality"]
    return DatasetFolder(path=Path(path), info=validate(DatasetJson, content, str(file), InputDataError))


def write_dataset_json(folder: Path, info: DatasetJson) -> None:
    """Write dataset.json atomically; the order of `labels` is kept, since regions are painted in that order."""
    atomic.write_json(folder / DATASET_JSON, info.model_dump(exclude_defaults=True, mode="json"))


def images_by_case(folder: Path, file_ending: str) -> dict[str, tuple[Path, ...]]:
    """Group nnU-Net's `CASE_0000.ending` files by case, channels in order; hidden files are left out."""
    pattern = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(file_ending))
    found: dict[str, dict[int, Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and not path.name.startswith("."):
                found.setdefault(match["case"], {})[int(match["channel"])] = path
    return {case: tuple(paths[c] for c in sorted(paths)) for case, paths in sorted(found.items())}


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
