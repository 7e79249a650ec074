"""Write docs/reproduction.md from the folders of `msd reproduce PAPER --full`: `make reproduction` runs both.

python docs/write_reproduction_page.py FOLDER...
"""

import sys
from pathlib import Path

from medsegdiff_cli.artifacts.reproduction import read_reproduction
from medsegdiff_cli.paths import REPRODUCTION_JSON, REPRODUCTION_MD

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

# How the shipped results are to be read, by sha256 of the declaration and seeds: other results get no such words.
READINGS = {
    ("1d6852d4813f35984dcc2443cb01ca2972df0edb5753685b4c78ba888fec9bc9", (11, 12, 13)): """\
### Reading

Two of the three gates do not hold.

- **R1**: recycling is not the best strategy here. Its +0.20 over the noised truth is what chance gives (one of three
  seeds has the other sign), all five strategies lie within 0.7 points, and self-conditioning is ahead by 0.23.
- **R2b**: the margin is there at t = 50 and 150 and misses the demanded 20 points at t = 250 by 0.35. The mechanism is
  plain to see all the same: fed a wrong mask at t = 50, the network trained on the noised truth follows the mask (89.7)
  rather than the image (73.4); the one trained by recycling keeps to the image (93.4).
- **R2** holds, but tells nothing apart: all five strategies rise from the first step to the last. The decline that was
  published for the others does not come out.
- **R17** is not met: recycling from one timestep before is the worst of the five.
- **R6** is met at the edge of what was allowed: recycling is ahead of the network without diffusion by more than in any
  of the paper's data sets. With so short a training this says little about either.

The width, 300 steps of 4 images and the 100 test images were chosen by the computing time at hand, before any of the
seeds was run. The thresholds come from single trial runs with 400 to 500 steps and a leak probe under stronger
noise. Whether R1 and R2b come out with longer training is not tested here. Before the declaration a trial of 40 steps
on another seed and other test images was looked at, to see the machinery run; no threshold was changed after it.

The quick form (seed 5, about two minutes of one core) was run last: R2 holds (+0.30), R2b has +25.4, +22.6 and +15.2 at
t = 50, 150 and 250, and does not hold.
""",
    ("9eccb9bb58d40181b305f76e388d452a6f0191b64d1d424da7bf6113ab9b36ff", (21, 22, 23)): """\
### Reading

- **R16** holds: each pretraining is ahead of random weights on both scanners, by 1 to 8 points, and so is their mean in
  every seed.
- **R14** does not hold: hybrid is ahead of the unsupervised pretraining on both scanners (+1.0), and of the supervised
  one on scanner B (+1.4), but 3.1 points behind the latter on scanner C. Seeds differ by as much as the arms do (-0.5
  to +0.9). Scanner C brightens and shades, which 400 labels of scanner A seem to prepare for; that this is the cause is
  a guess. 5 000 steps of 8 are a sixty-fourth of the paper's images, and far fewer of its pixels; whether R14 comes out
  with more is not tested here.
- **R15** is met in every seed: fine-tuning the hybrid model is 3 to 5 points ahead of pixel classifiers on it.
""",
}


def main(folders: list[str]) -> None:
    """Write the page from each folder's part."""
    PAGE.write_text("\n".join((INTRO, *map(_part, map(Path, folders)))), encoding="utf-8")


def _part(folder: Path) -> str:
    """Return a folder's page, with its reading where there is one."""
    result = read_reproduction(folder / REPRODUCTION_JSON)
    page = (folder / REPRODUCTION_MD).read_text(encoding="utf-8")
    reading = READINGS.get((result.declaration_digest, result.seeds))
    return page if reading is None else f"{page}\n{reading}"


if __name__ == "__main__":
    main(sys.argv[1:])
