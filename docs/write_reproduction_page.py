"""Write docs/reproduction.md from the folders of `msd reproduce PAPER --full`: `make reproduction` runs both.

python docs/write_reproduction_page.py FOLDER...
"""

import sys
from pathlib import Path

from medsegdiff_cli.paths import REPRODUCTION_MD

PAGE = Path(__file__).with_name("reproduction.md")
INTRO = """\
# Reproduction

What papers report, tried again on phantoms by criteria that were fixed before the runs: `msd reproduce PAPER --full`.
Phantoms are no patients: a trend that holds here says that the mechanism is there and implemented, not how large it
is on patients' images.
A gate that does not hold makes the command end with exit code 8; what is reported only never does.
Nothing was tuned on the seeds below; what did not come out stands here as it is.

Regenerate this page with `make reproduction`.
"""


def main(folders: list[str]) -> None:
    """Write the page from each folder's part."""
    parts = [(Path(folder) / REPRODUCTION_MD).read_text(encoding="utf-8") for folder in folders]
    PAGE.write_text("\n".join((INTRO, *parts)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
