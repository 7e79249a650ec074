"""Every checkpoint says what of its tensors is encoder, stem, embedding of the time, and head."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_learning_rates_of_layers import SHAPE, TASK, networks
from test_resume import signal_at
from toy_training import settings, train

from medsegdiff_cli.errors import Interrupted
from medsegdiff_cli.methods.vanilla import Vanilla, VanillaSettings
from medsegdiff_cli.networks.transfer import adaptation_data


@pytest.mark.parametrize("build", list(networks()))
def test_encoder_middle_and_decoder_are_the_whole_network_without_overlap(build: Any) -> None:
    network = build()
    found = adaptation_data(network)
    for tensor in network.state_dict():
        homes = [part for part in ("encoder", "middle", "decoder") if tensor.startswith(tuple(found[part]))]
        assert len(homes) == 1, tensor
    assert found["stem"] == [f"{network.input_layer}."]
    assert found["head"] == [f"{network.output_layer}."]
    assert found["stem"][0].startswith(tuple(found["encoder"]))
    assert found["head"][0].startswith(tuple(found["decoder"]))
    has_embedding = any("time_embed" in name for name in network.state_dict())
    assert bool(found["time_embedding"]) == has_embedding
    assert all(name in found["encoder"] for name in found["time_embedding"])


@pytest.mark.usefixtures("no_pictures")
def test_checkpoints_to_go_on_from_and_to_predict_with_carry_it(tmp_path: Path) -> None:
    def method() -> Vanilla:
        return Vanilla(TASK, VanillaSettings(network="adm", **SHAPE))

    chosen = settings(2)
    with pytest.raises(Interrupted):
        train(method(), tmp_path, chosen, make_batches=signal_at(0, chosen, 2))
    train(method(), tmp_path, chosen)
    headers = sorted((tmp_path / "checkpoints").glob("*.json"))
    assert {path.stem for path in headers} >= {"best", "last", "step_00000001"}
    for path in headers:
        found = json.loads(path.read_text())["state"]["adaptation"]
        assert found == {
            "stem": ["network.input_blocks.0.0."],
            "head": ["network.out.2."],
            "time_embedding": ["network.time_embed."],
            "encoder": ["network.time_embed.", "network.input_blocks."],
            "middle": ["network.middle_block."],
            "decoder": ["network.output_blocks.", "network.out."],
        }
