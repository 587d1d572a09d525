"""Training with d3rlpy's loop: losses of the SB3 API, schedules, optimisers, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.optimizers import (
    AdamFactory,
    AdamWFactory,
    CosineAnnealingLRFactory,
    GPTAdamWFactory,
    RMSpropFactory,
    SGDFactory,
    WarmupSchedulerFactory,
)
from d3rlpy.preprocessing import (
    MultiplyRewardScaler,
    PixelObservationScaler,
    StandardObservationScaler,
)

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.d3rlpy import (
    DecisionMambaAdamWFactory,
    DecisionMambaEncoderFactory,
    DecisionMambaLRFactory,
    as_replay_buffer,
)
from sb3_dmamba.data import compute_observation_statistics
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, DatasetError, DivergenceError
from tests.d3rlpy.cases import (
    CONTEXT,
    OURS,
    draw_batch,
    fit,
    make_algo,
    make_buffer,
    make_config,
    seeded,
    vector_encoder,
    weights_of,
)
from tests.models import TINY, Recorder
from tests.toys import random_trajectories

N_UPDATES = TINY["n_updates"]


def sb3_losses(data: Trajectories, **settings: Any) -> tuple[DecisionMamba, list[float]]:
    recorder = Recorder()
    model = DecisionMamba(None, seed=3, recipe="paper", **{**TINY, **settings})
    model.fit(data, callback=recorder)
    return model, recorder.losses


def as_their_config(data: Trajectories, **settings: Any) -> Any:
    """The ``TINY`` settings of the SB3 API in d3rlpy's terms, written by hand."""
    is_discrete = data.actions.ndim == 1
    statistics = compute_observation_statistics(data)
    scaler: Any = PixelObservationScaler()
    if statistics is not None:
        scaler = StandardObservationScaler(mean=statistics.mean, std=statistics.std, eps=0.0)
    schedule = DecisionMambaLRFactory(n_updates=N_UPDATES, lr_schedule="cosine")
    fields = {
        "observation_scaler": scaler,
        "reward_scaler": MultiplyRewardScaler(1.0 / TINY["return_scale"]),
        "encoder_factory": DecisionMambaEncoderFactory(TINY["hidden_size"]),
        "optim_factory": DecisionMambaAdamWFactory(lr_scheduler_factory=schedule),
        "context_size": TINY["context_length"],
        "num_layers": TINY["n_layers"],
        "num_heads": 1,
        "d_state": TINY["d_state"],
        "batch_size": TINY["batch_size"],
        "learning_rate": 1e-3,
        "activation_type": "gelu",
        "max_timestep": 1000,
        "seed": 3,
    }
    if is_discrete:
        fields |= {"embedding": "norm", "time_encoding": "timestep"}
    return make_config("discrete mamba" if is_discrete else "mamba", **{**fields, **settings})


CASES: dict[str, tuple[Trajectories, dict[str, Any], dict[str, Any]]] = {
    "continuous": (random_trajectories(), {}, {}),
    "discrete": (random_trajectories(n_actions=4), {}, {}),
    "attention": (random_trajectories(), {"mixer": "attention"}, {"mixer": "attention"}),
    "bf16": (random_trajectories(), {"precision": "bf16"}, {"precision": "bf16"}),
    "images": (
        random_trajectories((6, 4), (2, 36, 36), n_actions=3),
        {"time_encoding": "global", "embedding": "tanh", "n_layers": 1},
        {"time_encoding": None, "embedding": None, "num_layers": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_both_apis_have_the_same_losses(case: str) -> None:
    """Same seed, data and network: windows, weights, dropout and schedule are the same."""
    data, settings, their_settings = CASES[case]
    model, expected = sb3_losses(data, **settings)
    config = as_their_config(data, **their_settings)
    algo = config.create()
    assert config.embed_dropout == config.resid_dropout == 0.1
    found = fit(algo, as_replay_buffer(data, seed=3), N_UPDATES).values["loss"]
    tolerance = 2e-3 if case == "bf16" else 2e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert len(set(found)) == N_UPDATES
    theirs = algo.impl.model.head.projection.weight
    torch.testing.assert_close(
        theirs, model.policy.model.head.projection.weight, rtol=0, atol=tolerance
    )


def test_token_schedule_is_d3rlpys() -> None:
    """The learning rates that d3rlpy logs, up to the last token; it goes up again after it."""
    settings: dict[str, Any] = {"warmup_tokens": 30, "final_tokens": 120, "learning_rate": 1e-2}
    data = make_buffer(is_discrete=True, lengths=(30,))
    rates = {}
    for name in ("discrete transformer", "discrete mamba"):
        with seeded(1):
            algo = make_algo(name, **settings)
            rates[name] = fit(algo, data, 14).values["learning_rate"]
    theirs, ours = rates.values()
    n_before = sum(1 for rate in theirs[:5] if rate is not None)
    np.testing.assert_allclose(ours[: n_before + 1], theirs[: n_before + 1], rtol=1e-6)
    assert ours[-1] == pytest.approx(1e-3)


def test_the_first_update_is_warm() -> None:
    """d3rlpy takes its first step at the full rate, and counts tokens afterwards."""
    algo = make_algo("discrete mamba", (9,), warmup_tokens=1000)
    optimizer = algo.impl.modules.optim.optim
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    algo.update(draw_batch((9,), True))
    assert seen == [pytest.approx(6e-4 * 5 * CONTEXT / 1000)]


def test_a_scheduler_of_the_optimiser_takes_over() -> None:
    factory = AdamWFactory(lr_scheduler_factory=WarmupSchedulerFactory(4))
    algo = make_algo("discrete mamba", (9,), optim_factory=factory)
    for expected in (0.5, 0.75, 1.0, 1.0):
        metrics = algo.update(draw_batch((9,), True))
        assert set(metrics) == {"loss"}
        found = algo.impl.modules.optim.optim.param_groups[0]["lr"]
        assert found == pytest.approx(6e-4 * expected)


def test_lr_factory() -> None:
    factory = DecisionMambaLRFactory(n_updates=10, warmup_updates=2, lr_schedule="linear")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4.0)
    scheduler = factory.create(optimizer)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([2.0, 4.0, 4.0])
    assert rates[-1] == pytest.approx(0.4)
    with pytest.raises(ConfigError) as caught:
        DecisionMambaLRFactory(n_updates=10, lr_schedule="step")
    assert caught.value.setting == "lr_schedule"


FACTORIES = [
    SGDFactory(momentum=0.9),
    AdamFactory(clip_grad_norm=1.0),
    AdamWFactory(weight_decay=0.1),
    RMSpropFactory(),
    GPTAdamWFactory(weight_decay=0.1, lr_scheduler_factory=CosineAnnealingLRFactory(10)),
    DecisionMambaAdamWFactory(lr_scheduler_factory=WarmupSchedulerFactory(5)),
]


@pytest.mark.parametrize("index", range(len(FACTORIES)))
def test_every_optimiser_trains_and_is_saved(index: int, tmp_path: Path) -> None:
    name, factory = OURS[index % 2], FACTORIES[index]
    algo = make_algo(name, (9,), optim_factory=factory)
    batch = draw_batch((9,), name.startswith("discrete"))
    before = weights_of(algo)
    algo.update(batch)
    after = weights_of(algo)
    assert not torch.equal(before["head.projection.weight"], after["head.projection.weight"])
    algo.save(tmp_path / "model.d3")
    loaded = d3rlpy.load_learnable(str(tmp_path / "model.d3"))
    assert type(loaded.config.optim_factory) is type(factory)
    states = [each.impl.modules.optim.state_dict() for each in (algo, loaded)]
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("name", OURS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    is_discrete = name.startswith("discrete")
    data = random_trajectories(n_actions=3 if is_discrete else None, action_size=3)
    fields = {
        "seed": 5,
        "encoder_factory": vector_encoder(),
        "optim_factory": DecisionMambaAdamWFactory(
            lr_scheduler_factory=None if is_discrete else WarmupSchedulerFactory(5)
        ),
    }
    whole = make_algo(name, **fields)
    expected = fit(whole, as_replay_buffer(data), 6).values
    first = make_algo(name, **fields)
    fit(first, as_replay_buffer(data), 3)
    first.save(tmp_path / "half.d3")
    used = as_replay_buffer(data)
    used.sample_trajectory_batch(8, 4)
    for buffer in (as_replay_buffer(data), as_replay_buffer(data, first_batch=3), used):
        second: Any = d3rlpy.load_learnable(str(tmp_path / "half.d3"))
        found = fit(second, buffer, 3).values
        assert found["loss"] == expected["loss"][3:]
        if is_discrete:  # d3rlpy begins its schedule anew
            assert found["learning_rate"] == expected["learning_rate"][3:]
        ours, theirs = weights_of(whole), weights_of(second)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_global_randomness_is_used_without_a_seed_and_left_alone_with_one() -> None:
    batch = draw_batch()

    def losses(seed: int | None, d3rlpy_seed: int) -> list[float]:
        torch.manual_seed(0)
        algo = make_algo("mamba", (9,), seed=seed)
        torch.manual_seed(d3rlpy_seed)
        state = torch.get_rng_state()
        found = [algo.update(batch)["loss"] for _ in range(2)]
        assert torch.equal(state, torch.get_rng_state()) == (seed is not None)
        return found

    assert losses(None, 1) == losses(None, 1) != losses(None, 2)
    assert losses(7, 1) == losses(7, 2) != losses(8, 1)


@pytest.mark.parametrize("name", OURS)
def test_windows_of_padding_alone_are_no_update(name: str) -> None:
    algo, batch = make_algo(name, (9,)), draw_batch(is_discrete="discrete" in name)
    batch.masks[:] = 0.0
    before = weights_of(algo)
    assert algo.update(batch)["loss"] == 0.0
    assert int(algo.impl.progress.n_updates) == int(algo.impl.progress.n_tokens) == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in weights_of(algo).items())
    batch.masks[0, -1] = 1.0
    assert 0.0 < algo.update(batch)["loss"] < 100.0
    assert int(algo.impl.progress.n_tokens) == 1


def test_a_non_finite_loss_raises_and_keeps_the_weights() -> None:
    algo = make_algo("mamba", (9,))
    batch = draw_batch()
    batch.returns_to_go[0, 0] = np.nan
    before = weights_of(algo)
    with pytest.raises(DivergenceError) as caught:
        algo.update(batch)
    assert math.isnan(caught.value.value)
    assert all(torch.equal(before[name], value) for name, value in weights_of(algo).items())


@pytest.mark.parametrize("name", OURS)
def test_compiled_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is compiled has no loops over tokens, and draws from no own seed."""
    wrapped = []

    def wrap(function: Any) -> Any:
        wrapped.append(function)
        return function

    assert not make_algo(name, (9,), compile_graph=True).compiled  # on a CPU
    algo = make_config(name, compile_graph=True, seed=1).create()
    monkeypatch.setattr(type(algo), "compiled", True)
    monkeypatch.setattr("sb3_dmamba.d3rlpy.algo.CudaGraphWrapper", wrap)
    algo.create_impl((9,), 3)
    assert wrapped == [algo.impl.compute_grad]
    assert algo.impl.model.layers[0].mixer.backend == "traceable"
    assert math.isfinite(algo.update(draw_batch((9,), name.startswith("discrete")))["loss"])


def test_fit_refuses_other_datasets() -> None:
    with pytest.raises(DatasetError) as caught:
        make_algo("mamba").fit(random_trajectories(), n_steps=1)
    assert caught.value.setting == "dataset"
