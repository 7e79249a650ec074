"""DermIS: photographs of skin lesions from the University of Waterloo's "Skin Image Data Set".

Source: J. Glaister, Automatic segmentation of skin lesions from dermatological photographs, Master's thesis, University
of Waterloo (2013). Image and mask share a beginning: `X_orig.jpg` and `X_contour.png`, of which the latter is a filled
mask. The release also holds photographs of DermQuest, in folders beside; the folder names' case varies.
"""

from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, safe_name, visible_files
from .contract import ConversionReport, FormatInfo, Options
from .label_table import table_of_map
from .phantom import phantom
from .test_set import set_aside
from .writing_dataset import Declared, write_dataset

_SITE, _IMAGE, _MASK = "dermis", "_orig", "_contour"

FORMAT = FormatInfo(
    name="dermis",
    title="DermIS skin lesions (University of Waterloo's Skin Image Data Set)",
    reads=(
        "Folders called dermis (in any case) with X_orig.jpg and X_contour.png, anywhere below SOURCE; the folder "
        "above them, melanoma or notmelanoma, begins the case's name. Photographs of DermQuest are left out."
    ),
    example="msd convert dermis 'Skin Image Data Set' --dataset 33 --name DermIS --test-count 29",
    options=frozenset({"test_list", "test_count", "seed"}),
    citation=(
        "J. Glaister, Automatic segmentation of skin lesions from dermatological photographs, Master's thesis, "
        "University of Waterloo (2013)"
    ),
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: no photograph, a mask without one, or a case that cannot be used.
        UsageError: a test set that cannot be made.
    """
    files = [path for path in visible_files(source, recursive=True) if path.parent.name.lower() == _SITE]
    masks = {(path.parent, bare_name(path).removesuffix(_MASK)): path for path in files if _ends(path, _MASK)}
    images = {(path.parent, bare_name(path).removesuffix(_IMAGE)): path for path in files if _ends(path, _IMAGE)}
    if not images:
        fix = "give the folder that holds skin_data, or one above it"
        raise InputDataError(f"no X{_IMAGE} file in a folder called {_SITE}", where=str(source), fix=fix)
    if orphans := sorted(str(masks[key]) for key in masks.keys() - images.keys()):
        raise InputDataError("a mask has no photograph", where=orphans[0], fix="add the photograph, or remove the mask")
    cases = [
        CaseSource(
            case=safe_name(f"{folder.parent.name}_{name}"),
            part="Tr" if (folder, name) in masks else "Un",
            images=(path,),
            label=masks.get((folder, name)),
        )
        for (folder, name), path in sorted(images.items())
    ]
    sources, notes = set_aside(cases, options)
    declared = Declared(table=table_of_map({1: "lesion"}, 0), citation=FORMAT.citation, notes=notes)
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def _ends(path: Path, ending: str) -> bool:
    return bare_name(path).endswith(ending)


def make_fake_source(folder: Path) -> Options:
    """Write two photographs of melanoma and two of other lesions, one without a mask, and one of DermQuest."""
    grid = Geometry.plain((20, 24), has_physical_spacing=False)
    for index, place in enumerate(("melanoma/dermis", "melanoma/dermis", "notmelanoma/dermIS", "notmelanoma/dermIS")):
        image, mask = phantom(grid.shape, (1,), seed=index)
        below = folder / f"Set-{1 + index // 2}" / "skin_data" / place
        colours = np.concatenate([image, 255 - image, image])
        write_image(below / f"SSM{index % 2}_orig.png", Image(array=colours, geometry=grid))
        if index != 3:
            write_image(below / f"SSM{index % 2}_contour.png", Image(array=255 * mask, geometry=grid))
        write_image(below.parent / "dermquest" / f"N{index}_orig.png", Image(array=colours, geometry=grid))
    return Options(test_count=1)
