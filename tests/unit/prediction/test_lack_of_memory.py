"""A network that does not fit the device stops a prediction with the exit code for resources."""

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsegdiff_cli.errors import ResourceError
from medsegdiff_cli.prediction import case_steps
from medsegdiff_cli.prediction.settings import OutputSettings


@pytest.mark.fault("F61")
def test_lack_of_device_memory_is_a_resource_error_that_names_the_case(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmany more lines")

    monkeypatch.setattr(case_steps, "predict_volume", refuse)
    transformed = SimpleNamespace(image=np.zeros((1, 4, 4), np.float32))
    reading = Future()
    reading.set_result(SimpleNamespace(case=SimpleNamespace(case="case_7"), transformed=transformed))
    job = SimpleNamespace(models=[], inference=None, wanted=OutputSettings())
    with pytest.raises(ResourceError, match=r"CUDA out of memory\.\)[\s\S]*case_7[\s\S]*--window-batch"):
        case_steps.compute_case(job, reading)
