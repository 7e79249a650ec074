"""The number of threads changes no label."""

import numpy as np
import pytest
import torch
from msd_shell import done, labels_of, voxels_of

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.fault("F99")
@pytest.mark.usefixtures("keep_threads")
def test_one_thread_and_three_predict_the_same_labels(lab, tmp_path):
    for threads in (1, 3):
        torch.set_num_threads(threads)
        output = tmp_path / str(threads)
        done("predict", lab.run, lab.images, output, "--workers", 0, "--save-probabilities")
        assert torch.get_num_threads() == threads
    one, three = labels_of(tmp_path / "1"), labels_of(tmp_path / "3")
    assert one.keys() == three.keys()
    assert len(one) == 2
    for case in one:
        assert np.unique(one[case]).size > 1
        assert np.array_equal(one[case], three[case])
    for path in (tmp_path / "1" / "probabilities").iterdir():
        # Sums in another order differ in their last bits.
        np.testing.assert_allclose(voxels_of(path), voxels_of(tmp_path / "3" / "probabilities" / path.name), atol=1e-4)
