"""What things cost: counted by hand, checked against torch's counter, timed only when right."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments import efficiency as module
from sb3_dmamba.experiments.catalogue import Measurement, MeasurementRequest, get_experiment
from sb3_dmamba.experiments.efficiency import (
    check_variant,
    count_flops,
    measure_cost,
    measure_efficiency,
)
from sb3_dmamba.experiments.report import rebuild_report
from sb3_dmamba.networks.model import Block

TINY = {"hidden_size": 16, "n_layers": 1, "d_state": 4}


def config(**settings: Any) -> DecisionMambaConfig:
    return DecisionMambaConfig.from_recipe("paper", **{**TINY, "context_length": 4, **settings})


def efficiency() -> Measurement:
    found = get_experiment("efficiency")
    assert isinstance(found, Measurement)
    return found


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without care for precision."""
    monkeypatch.setattr(module, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_REPEATS", 1)
    monkeypatch.setattr(module, "_STEPS_OF_UPDATE", 16)


def count_matrix_products(settings: DecisionMambaConfig) -> float:
    """Let torch count the matrix products and convolutions of one block, by token."""
    n_tokens = 3 * settings.context_length
    block = Block(settings).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(torch.randn(1, n_tokens, settings.hidden_size))
    return float(counter.get_total_flops()) / n_tokens


def test_mamba_s_projections_are_torch_s() -> None:
    settings = config(channel_mixing=False, backend="reference", hidden_size=32)
    inner, states, rank = 64, 4, 2
    # what the reference does without a matrix product or torch's convolution
    by_itself = inner * states * 7 + 4 * inner + 2 * inner * 4 + 2 * rank * inner
    assert count_flops(settings) - by_itself == count_matrix_products(settings)


def test_attention_s_projections_are_torch_s_and_its_scores_grow() -> None:
    settings = config(mixer="attention", channel_mixing=False, hidden_size=32)
    scores = 2 * 2 * (12 + 1) / 2 * 32
    assert count_flops(settings) - scores == 2 * 32 * (3 * 32 + 32)
    longer = settings.replace(context_length=400)
    assert count_flops(longer) > 5 * count_flops(settings)
    mamba = config(channel_mixing=False)
    assert count_flops(mamba.replace(context_length=400)) == count_flops(mamba)
    for mixer in ("mamba", "attention", "convolution"):
        one = config(mixer=mixer)
        assert count_flops(one.replace(n_layers=3)) == 3 * count_flops(one)


def test_what_is_right_passes() -> None:
    for mixer in ("mamba", "attention", "convolution"):
        check_variant(config(mixer=mixer), "cpu")


def test_wrong_outputs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    make_policy = module.make_policy

    def spoil(settings: DecisionMambaConfig, *arguments: Any) -> Any:
        policy = make_policy(settings, *arguments)
        if settings.backend != "reference":
            policy.model.norm.register_forward_hook(lambda *args: args[-1] + 0.5)
        return policy

    monkeypatch.setattr(module, "make_policy", spoil)
    with pytest.raises(ExperimentError, match="off by") as caught:
        check_variant(config(), "cpu")
    assert caught.value.setting == "outputs"


def test_wrong_steps_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    step = module.step_through
    monkeypatch.setattr(module, "step_through", lambda *args: step(*args) + 0.01)
    with pytest.raises(ExperimentError, match="off by") as caught:
        check_variant(config(), "cpu")
    assert caught.value.setting == "steps"


def test_every_cost_is_measured() -> None:
    cost = measure_cost("mamba", config(), "cpu")
    assert (cost.context_length, cost.batch_size) == (4, 4)
    assert min(cost.update_us, cost.window_ms, cost.stream_ms, cost.kept_bytes) > 0
    # keys: one layer of 32 channels, 3 taps and 4 states, in float32; timestep and action
    assert cost.stream_state_bytes == 4 * (32 * 3 + 32 * 4) + 8 + 3 * 4
    # four steps: an embedded observation, an action, a return-to-go
    assert cost.window_state_bytes == 4 * 4 * (16 + 3 + 1) + 8 + 3 * 4
    without = measure_cost("mamba", config(time_encoding="global"), "cpu")
    assert math.isnan(without.stream_ms)
    assert math.isnan(without.stream_state_bytes)


def test_the_report_stands_by_itself(tmp_path: Path) -> None:
    request = MeasurementRequest(
        tmp_path, "dmamba experiment efficiency", ("mamba", "attention+mlp"), TINY, "cpu"
    )
    files = measure_efficiency(efficiency(), request, (2, 4))
    text = files[0].read_text()
    for said in (
        "# Efficiency",
        "**Time, memory",
        "does not explore",
        "from K 2 to K 4 (2 times as long)",
    ):
        assert said in text
    assert "dmamba experiment efficiency" in text
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["variant"], row["context_length"]) for row in rows] == [
        ("mamba", "2"),
        ("attention+mlp", "2"),
        ("mamba", "4"),
        ("attention+mlp", "4"),
    ]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["device"], settings["threads"]) == ("cpu", 1)
    for name in ("update", "acting", "memory"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    files[0].unlink()
    assert rebuild_report(tmp_path).read_text() == text
