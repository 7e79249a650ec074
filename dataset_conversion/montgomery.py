"""Montgomery County chest radiographs: one mask for each lung, in folders of their own.

Source: S. Jaeger et al., Two public chest X-ray datasets for computer-aided screening of pulmonary diseases,
Quantitative Imaging in Medicine and Surgery 4 (2014). 138 radiographs; a name that ends in _1 is of a patient with
tuberculosis. The masks hold 0 and 255: their sum would wrap around in 8 bits, so they are joined instead.
"""

from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, name_cases, visible_files
from .contract import ConversionReport, FormatInfo, Options
from .label_table import table_of_map
from .phantom import phantom
from .test_set import set_aside
from .writing_dataset import Declared, write_dataset

_SIDES = ("leftMask", "rightMask")

FORMAT = FormatInfo(
    name="montgomery",
    title="Montgomery County chest radiographs (MontgomerySet)",
    reads=(
        "A folder with CXR_png and ManualMask/leftMask and rightMask, whose files have the radiographs' names. Both "
        "lungs become one class. A radiograph without masks becomes unlabelled; one with a single mask is an error."
    ),
    example="msd convert montgomery MontgomerySet --dataset 36 --name Montgomery --test-count 78",
    options=frozenset({"test_list", "test_count", "seed"}),
    citation=(
        "S. Jaeger, S. Candemir, S. Antani, Y.-X. Wang, P.-X. Lu, G. Thoma, Two public chest X-ray datasets for "
        "computer-aided screening of pulmonary diseases, Quantitative Imaging in Medicine and Surgery 4 (2014)"
    ),
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: no radiograph, one lung without the other, or a case that cannot be used.
        UsageError: a test set that cannot be made.
    """
    folder = source / "CXR_png"
    images = visible_files(folder)
    if not images:
        raise InputDataError(
            "no radiographs", where=str(folder), fix="give the folder that holds CXR_png and ManualMask"
        )
    sources, notes = set_aside(
        [_case(source, path, name) for path, name in name_cases(folder, images).items()], options
    )
    declared = Declared(table=table_of_map({255: "lung"}, 127), citation=FORMAT.citation, notes=notes)
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def _case(source: Path, image: Path, name: str) -> CaseSource:
    masks = [path for side in _SIDES if (path := source / "ManualMask" / side / image.name).is_file()]
    if len(masks) == 1:
        raise InputDataError(
            "only one lung has a mask", where=str(masks[0]), fix="add the other one, or remove this one"
        )
    return CaseSource(
        case=name,
        part="Tr" if masks else "Un",
        images=(image,),
        label=next(iter(masks), None),
        more_label=tuple(masks[1:]),
    )


def make_fake_source(folder: Path) -> Options:
    """Write four radiographs, the last without masks."""
    grid = Geometry.plain((24, 32), has_physical_spacing=False)
    for index in range(4):
        image, mask = phantom(grid.shape, (1, 2), seed=index)
        name = f"MCUCXR_{index:04d}_{index % 2}.png"
        write_image(folder / "CXR_png" / name, Image(array=image, geometry=grid))
        for side, value in zip(_SIDES, (1, 2), strict=True):
            if index < 3:
                lung = np.where(mask == value, 255, 0).astype(np.uint8)
                write_image(folder / "ManualMask" / side / name, Image(array=lung, geometry=grid))
    return Options(test_count=1)
