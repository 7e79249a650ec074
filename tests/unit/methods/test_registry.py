"""The registry knows all methods by name without importing any."""

import subprocess
import sys

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.methods.registry import METHODS, find_method


def test_listing_methods_imports_no_torch():
    code = (
        "import sys; from medsegdiff_cli.methods.registry import METHODS; assert METHODS; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", METHODS)
def test_a_name_leads_to_its_class(name):
    assert issubclass(find_method(name).load(), Method)


def test_an_unknown_method_is_a_usage_error_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'supervised'") as error:
        find_method("superviced")
    assert error.value.exit_code == 2
