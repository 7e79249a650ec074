"""Feature cache: the same features from the network and from the disk, each input computed once."""

import torch
from torch import Tensor

from medsegdiff_cli.networks.feature_cache import FeatureCache


class Network:
    """Counts the items that it computes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> list[Tensor]:
        assert len(x) == 1, "items are computed alone"
        self.calls += 1
        return [x.repeat(1, 3, 1, 1) / 3, torch.nn.functional.avg_pool2d(x, 2)]


def test_features_are_those_of_the_network_rounded_to_float16(tmp_path):
    x, network = torch.randn(3, 1, 8, 8), Network()
    first = FeatureCache(tmp_path).features(x, "t1", network)
    for item in range(3):
        for block, expected in zip(first, network(x[item : item + 1]), strict=True):
            assert torch.equal(block[item], expected[0].half())


def test_an_input_is_computed_once_whatever_its_batch_and_comes_back_the_same(tmp_path):
    x, network = torch.randn(3, 1, 8, 8), Network()
    first = FeatureCache(tmp_path).features(x, "t1", network)
    again = FeatureCache(tmp_path).features(x.flip(0), "t1", network)
    assert network.calls == 3
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(first, again, strict=True))


def test_another_input_or_another_timestep_is_computed_anew(tmp_path):
    x, network, cache = torch.randn(1, 1, 8, 8), Network(), FeatureCache(tmp_path)
    cache.features(x, "t1", network)
    cache.features(x, "t10", network)
    cache.features(x + 1e-6, "t1", network)
    assert network.calls == 3


def test_a_damaged_file_is_computed_again(tmp_path):
    x, network, cache = torch.randn(1, 1, 8, 8), Network(), FeatureCache(tmp_path)
    expected = cache.features(x, "t1", network)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert all(torch.equal(a, b) for a, b in zip(expected, cache.features(x, "t1", network), strict=True))
    assert network.calls == 2
