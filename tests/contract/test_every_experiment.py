"""Contract of every shipped declaration: its methods, settings and plan are ones that training understands."""

import pytest

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.methods.registry import METHODS
from medsegdiff_cli.phantoms.scanner import find_scanner
from medsegdiff_cli.planning.overrides import PlanOverrides
from medsegdiff_cli.workflows.pretraining import pretraining_run_name
from medsegdiff_cli.workflows.recipes import apply_overrides, load_recipe, sections_of
from medsegdiff_cli.workflows.reproduce import load_declaration, paper_names


@pytest.fixture(params=paper_names())
def declaration(request):
    return load_declaration(request.param)


def test_a_paper_is_shipped():
    assert "tedm" in paper_names()


def test_it_is_named_after_its_file_and_has_both_tiers(declaration):
    assert load_declaration(declaration.paper) == declaration
    assert set(declaration.tiers) == {"quick", "full"}
    assert declaration.deviations
    assert declaration.tier("full").seeds >= 3
    assert min(declaration.cohort.test.values()) >= 60


def test_the_full_tier_runs_every_experiment_at_all_its_label_budgets(declaration):
    assert declaration.chosen(declaration.tier("full")) == declaration.experiments


def test_every_setting_is_one_of_the_trainings_it_is_meant_for(declaration):
    validate(PlanOverrides, declaration.plan, declaration.paper)
    methods = {arm.method for experiment in declaration.experiments for arm in experiment.arms}
    assert methods <= set(METHODS)
    jobs = [(pretraining_run_name(declaration.objective), declaration.objective, declaration.pretraining)]
    jobs += [(method, method, declaration.heads) for method in sorted(methods)]
    for run, name, budget in jobs:
        sections = sections_of(run, load_recipe(run), budget.preset)
        settled = apply_overrides(sections, budget.settings_of(name), run)
        assert settled["training"]["steps"] <= 1000


def test_its_scanners_exist(declaration):
    cohort = declaration.cohort
    for scanner in {*cohort.labelled, *cohort.unlabelled, *cohort.test}:
        find_scanner(scanner)
