"""`msd reproduce`: a paper's trends as declared experiments, from phantoms to verdicts, in one folder."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from medsegdiff_cli import __version__, atomic
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.artifacts.experiment import Declaration, Experiment, TierName, read_declaration
from medsegdiff_cli.artifacts.experiment_arms import Arm
from medsegdiff_cli.artifacts.reproduction import Reproduction, write_reproduction
from medsegdiff_cli.errors import BelowDemandedScore, UsageError, did_you_mean
from medsegdiff_cli.evaluation.trends import ArmScores, judge
from medsegdiff_cli.paths import REPRODUCTION_JSON, REPRODUCTION_MD
from medsegdiff_cli.reporting.reproduction_page import reproduction_markdown
from medsegdiff_cli.workflows.devices import choose_device
from medsegdiff_cli.workflows.reproduction_runs import SeedRuns

_PACKAGE, _FOLDER = "medsegdiff_cli.plans", "experiments"
_MARKER = "reproduce.json"


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest:
    """What `msd reproduce` was asked for.

    Attributes:
        paper: a shipped declaration, or a file of one.
        output: empty, missing, or of the same declaration.
        seeds: how many; None takes the tier's.
    """

    paper: str
    output: Path
    tier: TierName = "quick"
    seeds: int | None = None
    device: str | None = None


def paper_names() -> list[str]:
    """Return the papers whose experiments are shipped."""
    files = (resources.files(_PACKAGE) / _FOLDER).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_declaration(name_or_path: str) -> Declaration:
    """Return the experiments of a paper by its name, or a user's own file.

    Raises:
        UsageError: no such paper, or wrong keys in the file.
    """
    own = Path(name_or_path).expanduser()
    if own.suffix in (".yaml", ".yml") and own.is_file():
        return read_declaration(own)
    if name_or_path not in paper_names():
        raise UsageError(
            f"no experiments of a paper '{name_or_path}'", where="PAPER", fix=did_you_mean(name_or_path, paper_names())
        )
    with resources.as_file(resources.files(_PACKAGE) / _FOLDER / f"{name_or_path}.yaml") as path:
        return read_declaration(path)


def reproduce(request: ReproduceRequest, say: Callable[[str], None] = print) -> Reproduction:
    """Train, predict and score all arms, judge the experiments, and write `reproduction.json` and `.md`.

    The same call again goes on where it stopped; tiers share the trainings that they have in common.

    Args:
        say: told of every step as it ends.

    Raises:
        UsageError: an unknown paper, or a folder of something else. Interrupted: after saving.
    """
    declaration = load_declaration(request.paper)
    tier = declaration.tier(request.tier)
    if request.seeds is not None and request.seeds < 1:
        raise UsageError(f"{request.seeds} seeds", where="--seeds", fix="give 1 or more")
    seeds = tuple(range(tier.first_seed, tier.first_seed + (request.seeds or tier.seeds)))
    experiments = declaration.chosen(tier)
    folder = request.output.expanduser().resolve()
    _claim(folder, declaration)
    needed = _needed(experiments)
    device = choose_device(request.device)
    counter = _Counter(say)
    runs = [SeedRuns(folder / f"seed_{seed}", declaration, seed, device, counter.step) for seed in seeds]
    counter.total = sum(of_seed.steps(needed) for of_seed in runs)
    values: dict[tuple[int, str, str], dict[str, dict[str, float]]] = {}
    for of_seed in runs:
        values |= of_seed.scores(needed)
    scores = ArmScores(values, declaration.cohort.same_tests)
    result = Reproduction(
        paper=declaration.paper,
        title=declaration.title,
        citation=declaration.citation,
        tier=request.tier,
        seeds=seeds,
        test_persons=declaration.cohort.test_cases,
        msd_version=__version__,
        command=_command(request),
        declaration=declaration,
        declaration_digest=_digest(declaration),
        findings=tuple(judge(experiment, scores) for experiment in experiments),
    )
    write_reproduction(folder / REPRODUCTION_JSON, result)
    atomic.write_text(folder / REPRODUCTION_MD, reproduction_markdown(result))
    return result


def demand_gates(reproduction: Reproduction) -> None:
    """Fail where a gate does not hold.

    Raises:
        BelowDemandedScore: names the experiments.
    """
    if reproduction.failed:
        raise BelowDemandedScore(
            f"{len(reproduction.failed)} of the published trends did not come out: {', '.join(reproduction.failed)}",
            where=f"msd reproduce {reproduction.paper}",
            fix=f"see {REPRODUCTION_MD}; every run itself has ended well",
        )


class _Counter:
    """Says which of how many steps has ended."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.total, self._say, self._done = 0, say, 0

    def step(self, text: str) -> None:
        """Count a step."""
        self._done += 1
        self._say(f"[{self._done}/{self.total}] {text}")


def _needed(experiments: tuple[Experiment, ...]) -> dict[Arm, tuple[str, ...]]:
    """Return each arm with the domains that it is tested on."""
    found: dict[Arm, dict[str, None]] = {}
    for experiment in experiments:
        for arm in experiment.arms:
            found.setdefault(arm, {}).update(dict.fromkeys(experiment.criterion.domains))
    return {arm: tuple(domains) for arm, domains in found.items()}


def _command(request: ReproduceRequest) -> str:
    seeds = "" if request.seeds is None else f" --seeds {request.seeds}"
    return f"msd reproduce {Path(request.paper).stem} --{request.tier}{seeds}"


def _digest(declaration: Declaration) -> str:
    return atomic.digest_of_content(declaration.model_dump(mode="json"))


def _claim(folder: Path, declaration: Declaration) -> None:
    """Mark the folder as this declaration's.

    Raises:
        UsageError: it holds something else.
    """
    marker = folder / _MARKER
    # A change of words, seeds or thresholds alters no training, but a folder stands for one declaration.
    content = {"paper": declaration.paper, "declaration": _digest(declaration)}
    if marker.is_file():
        if read_json(marker) != content:
            what = "the folder holds a reproduction of other experiments, or of an earlier version of these"
            raise UsageError(what, where=str(folder), fix="choose another --output")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder is not empty", where=str(folder), fix="choose an empty one with --output")
    atomic.write_json(marker, content)
