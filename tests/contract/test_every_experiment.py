"""Contract of every shipped declaration: its methods, settings and plan are ones that training understands."""

import pytest

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.cohorts import Chests, Transfers
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.methods.registry import METHODS, find_trainable
from medsegdiff_cli.phantoms.scanner import find_scanner
from medsegdiff_cli.planning.overrides import PlanOverrides
from medsegdiff_cli.workflows.pretraining import pretraining_run_name
from medsegdiff_cli.workflows.recipes import apply_overrides, load_recipe, sections_of
from medsegdiff_cli.workflows.reproduce import load_declaration, paper_names


@pytest.fixture(params=paper_names())
def declaration(request):
    return load_declaration(request.param)


def test_papers_are_shipped():
    assert {"tedm", "recycling", "hybrid"} <= set(paper_names())


def test_the_results_of_tedm_are_known_by_its_digest():
    """A new kind of experiment must not give a stored reproduction another declaration."""
    content = load_declaration("tedm").model_dump(mode="json")
    digest = "12c4d0d5f84e36b44107a907228385b48f00b5f90587f8c87d45ab61597d0e74"
    assert atomic.digest_of_content(content) == digest


def test_it_is_named_after_its_file_and_has_both_tiers(declaration):
    assert load_declaration(declaration.paper) == declaration
    assert set(declaration.tiers) == {"quick", "full"}
    assert declaration.deviations
    assert declaration.tier("full").seeds >= 3
    assert declaration.cohort.test_cases >= 60


def test_the_full_tier_runs_every_experiment_at_all_its_label_budgets(declaration):
    assert declaration.chosen(declaration.tier("full")) == declaration.experiments


def test_every_setting_is_one_of_the_trainings_it_is_meant_for(declaration):
    validate(PlanOverrides, declaration.plan, declaration.paper)
    methods = {arm.method for experiment in declaration.experiments for arm in experiment.arms}
    assert methods <= set(METHODS)
    assert set(declaration.objectives) <= methods
    objectives = {declaration.objective_of(method) for method in methods} - {None}
    jobs = [(pretraining_run_name(name), name, declaration.pretraining) for name in sorted(objectives)]
    jobs += [(method, method, declaration.heads) for method in sorted(methods)]
    for run, name, budget in jobs:
        sections = sections_of(run, load_recipe(run), budget.preset)
        settled = apply_overrides(sections, budget.settings_of(name), run)
        find_trainable(run).load().Settings.model_validate(settled["method"])
        assert settled["training"]["steps"] <= 5000


def test_its_scanners_exist(declaration):
    cohort = declaration.cohort
    if not isinstance(cohort, Chests | Transfers):
        pytest.skip("no scanners")
    trained = (cohort.source, cohort.targets) if isinstance(cohort, Transfers) else (cohort.labelled, cohort.unlabelled)
    for scanner in {name for counts in (*trained, cohort.test) for name in counts}:
        find_scanner(scanner)


def test_the_quick_tier_trains_on_none_of_the_seeds_that_results_come_from(declaration):
    quick, full = declaration.tier("quick"), declaration.tier("full")
    if declaration.paper == "tedm":
        pytest.skip("shares its first seed")
    assert quick.first_seed not in range(full.first_seed, full.first_seed + full.seeds)
