import pytest

from medsegdiff_cli.workflows.demo import DemoSettings, run_demo


@pytest.fixture(scope="session")
def tiny_settings():
    return DemoSettings(
        shape=(8, 16, 16),
        labelled=5,
        test=2,
        overrides={"steps": "2", "validate_every_steps": "0", "patch_size_voxels": "[8, 16, 16]"},
        workers=0,
    )


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory, tiny_settings):
    """The whole chain in its smallest form: its report, and what it said."""
    said = []
    report = run_demo(tmp_path_factory.mktemp("demo") / "chain", seed=1, say=said.append, settings=tiny_settings)
    return report, said
