"""Names to tasks: the paper's recipes, Minari and Gymnasium ids, and names that mean nothing."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Discrete

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.d4rl import list_names
from sb3_dmamba.data import load_trajectories
from sb3_dmamba.envs import ATARI_ID
from sb3_dmamba.errors import ConfigError, UnknownTaskError
from sb3_dmamba.tasks import ReferenceScores, Task, get_reference_scores, get_task, list_tasks

LOCOMOTION = [
    f"{robot}-{quality}-v2"
    for robot in ("halfcheetah", "hopper", "walker2d")
    for quality in ("medium", "medium-replay", "medium-expert")
]
GAMES = ["breakout", "qbert", "pong", "seaquest"]


def test_the_listed_names_are_the_papers_and_the_bundled_dataset() -> None:
    assert [task.name for task in list_tasks()] == [
        "halfcheetah-bundled",
        *LOCOMOTION,
        *GAMES,
        "tmaze-50",
    ]


def check_sources(task: Task) -> None:
    """Whatever is set says where it is from, and nothing else does."""
    assert all(task.source.values())
    recorded = {"env_id", "env_kwargs", "dataset", "target_returns", "reference", "overrides"}
    for name in recorded | {"clip_rewards", "actions"}:
        assert bool(getattr(task, name)) == (name in task.source), (task.name, name)


def test_named_tasks_are_complete() -> None:
    for task in list_tasks():
        assert get_task(task.name) == task
        assert task.description
        assert task.env_id is not None
        assert task.target_returns
        assert task.reference is not None or task.name == "halfcheetah-bundled"
        check_sources(task)
    assert len(load_trajectories(get_task("halfcheetah-bundled").dataset)) == 90


# The table of the paper's appendix, typed again.
WIDTHS_AND_RATES = dict.fromkeys(LOCOMOTION, (128, 1e-3))
WIDTHS_AND_RATES["hopper-medium-v2"] = WIDTHS_AND_RATES["hopper-medium-replay-v2"] = (256, 1e-4)
WIDTHS_AND_RATES["walker2d-medium-v2"] = (128, 1e-4)


def test_locomotion_recipe() -> None:
    for name, expected in WIDTHS_AND_RATES.items():
        task = get_task(name)
        config = task.config()
        assert (config.hidden_size, config.learning_rate) == expected, name
        assert (config.n_layers, config.context_length, config.batch_size) == (3, 20, 64)
        assert (config.n_updates, config.warmup_updates) == (100_000, 10_000)
        assert config.lr_schedule == "constant"
        assert (config.weight_decay, config.max_grad_norm, config.dropout) == (1e-4, 0.25, 0.1)
        assert config.return_scale == 1000.0
        assert task.dataset == name
        assert str(task.env_id).endswith("-v4")  # v5 changes the rewards


def test_locomotion_targets_and_references() -> None:
    hopper = get_task("hopper-medium-v2")
    assert hopper.target_returns == (1800.0, 3600.0, 7200.0, 36000.0, 72000.0)
    assert hopper.reference is not None
    assert (hopper.reference.minimum, hopper.reference.maximum) == (-20.272305, 3234.3)
    cheetah = get_task("halfcheetah-medium-v2")
    assert cheetah.target_returns == (6000.0, 12000.0, 24000.0, 120000.0, 240000.0)
    assert get_task("walker2d-medium-v2").target_returns[0] == 2500.0


def test_every_name_of_d4rl_is_a_task() -> None:
    for name in list_names():
        task = get_task(name)
        is_papers, has_recipe = name in LOCOMOTION, name[:-1] + "2" in LOCOMOTION
        assert (task.name, task.dataset) == (name, name)
        assert (task in list_tasks()) == is_papers
        check_sources(task)
        origin = task.source["overrides"]
        assert ("paper's recipe" in task.description) == has_recipe
        assert ("none is published" in origin) == (not has_recipe)
        assert ("version 2" in origin) == (has_recipe and not is_papers)
        assert task.reference == get_task(f"{name.split('-')[0]}-medium-v2").reference


def test_the_papers_tasks_have_its_recipe_and_others_the_default() -> None:
    assert DecisionMamba("walker2d-medium-v2").config.conditioning == "sequence"
    chosen = DecisionMamba("walker2d-medium-v2", recipe="default", dropout=0.0)
    assert chosen.config == DecisionMambaConfig(dropout=0.0)
    assert DecisionMamba("Hopper-v5").config == DecisionMambaConfig()
    assert DecisionMamba(None, recipe="paper").config == DecisionMambaConfig.from_recipe("paper")
    old = {"name": "mine", "overrides": {"dropout": 0.0}}  # as 0.1.0 wrote a task
    assert Task.from_dict(old).config() == DecisionMambaConfig.from_recipe("paper", dropout=0.0)
    for given in ({"recipe": "best"}, {"recipe": "paper", "config": DecisionMambaConfig()}):
        with pytest.raises(ConfigError) as raised:
            DecisionMamba(None, **given)
        assert (raised.value.setting, raised.value.value) == ("recipe", given["recipe"])


def test_tasks_that_the_paper_does_not_have() -> None:
    expert = get_task("hopper-expert-v2")
    assert expert.target_returns == get_task("hopper-medium-v2").target_returns
    assert (expert.config().hidden_size, expert.config().learning_rate) == (128, 1e-3)
    assert get_task("hopper-medium-v0").config() == get_task("hopper-medium-v2").config()
    ant = get_task("ant-medium-v2")
    assert ant.target_returns == ()  # from the dataset
    assert (ant.env_id, ant.env_kwargs) == ("Ant-v4", {"use_contact_forces": True})
    assert ant.reference is not None
    assert (ant.reference.minimum, ant.reference.maximum) == (-325.6, 3879.7)
    assert "medium_expert='paper'" in get_task("hopper-medium-expert-v2").source["dataset"]
    with pytest.raises(UnknownTaskError) as raised:
        get_task("hopper-expret-v2")
    assert "hopper-expert-v2" in raised.value.choices


def test_atari_recipe() -> None:
    for name, context, target, warmup in (("breakout", 30, 90.0, 2), ("pong", 50, 20.0, 1)):
        task = get_task(name)
        config = task.config()
        assert (task.env_id, task.target_returns, task.clip_rewards) == (ATARI_ID, (target,), True)
        assert task.env_kwargs["game"].lower() == name
        assert task.env_kwargs["sticky_actions"] == 0.25  # as DQN replay was recorded
        assert task.env_kwargs["terminal_on_life_loss"] is False
        assert (config.context_length, config.n_layers, config.hidden_size) == (context, 6, 128)
        found = (config.embedding, config.time_encoding, config.encoder)
        assert found == ("tanh", "global", "nature_cnn")
        assert (config.weight_decay, config.adam_betas) == (0.1, (0.9, 0.95))
        assert (config.learning_rate, config.lr_schedule) == (6e-4, "cosine")
        assert (config.max_grad_norm, config.return_scale) == (1.0, 1.0)
        # 500,000 windows in batches of 256 are 1,953.1 updates an epoch. The official trainer ends
        # its cosine after 2 * N * K * 3 tokens at one per action: six epochs, whatever K is.
        assert (config.n_updates, config.decay_updates) == (19_540, 11_719)
        assert config.warmup_updates == warmup
    for other in GAMES:  # whose targets are beyond what clipped rewards reach
        is_beyond = "clip_rewards=False" in get_task(other).source["target_returns"]
        assert is_beyond == (other in ("qbert", "seaquest"))


def test_d4rl_scores_stay_with_d4rl_names() -> None:
    measured = get_reference_scores("Hopper-v5")
    assert measured is not None
    assert (measured.minimum, measured.maximum) == (16.6, 3521.0)
    assert get_task("Hopper-v5").reference == measured
    assert get_reference_scores("Hopper-v4") is None
    assert get_task("Hopper-v4").reference is None
    assert get_task("hopper/medium-v0").dataset != get_task("hopper-medium-v2").dataset


def test_unknown_name_gets_suggestions() -> None:
    for name, suggestion in (
        ("hoper-medium-v2", "hopper-medium-v2"),
        ("hopper-medium", "hopper-medium-v2"),
        ("Breakout", "breakout"),
        ("hopper", "hopper-medium-v2"),
        ("hopper-bundled", "halfcheetah-bundled"),
        ("Hoper-v5", "Hopper-v5"),
        *((name, None) for name in ("", "   ", "/", "..", "nowhere:Foo-v0", "qwertyuiop")),
    ):
        with pytest.raises(UnknownTaskError) as raised:
            get_task(name)
        assert (raised.value.setting, raised.value.value) == ("task", name)
        assert suggestion is None or suggestion in raised.value.choices


def test_run_of_another_length_keeps_the_recipes_shape() -> None:
    task = get_task("hopper-medium-v2")
    assert task.config(n_updates=3000).warmup_updates == 300
    assert task.config(n_updates=3000, warmup_updates=7).warmup_updates == 7
    assert task.config(learning_rate=1e-2).warmup_updates == 10_000
    assert get_task("pong").config(n_updates=1954).decay_updates == 1172
    assert task.config(n_updates=3000).hidden_size == 256


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="'learning_rate'") as raised:
        get_task("hopper-medium-v2").config(learning_rat=1.0)
    assert raised.value.setting == "learning_rat"
    with pytest.raises(ConfigError) as raised:
        Task("mine", overrides={"hidden_size": 0})
    assert (raised.value.setting, raised.value.value) == ("hidden_size", 0)
    for bounds in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ConfigError) as raised:
            ReferenceScores(*bounds, source="nowhere")
        assert raised.value.setting == "reference"
    task = get_task("hopper-medium-v2")
    assert isinstance(task.overrides, dict)
    task.overrides["hidden_size"] = 1  # changes no other task
    assert get_task("hopper-medium-v2").config().hidden_size == 256


@pytest.mark.parametrize("name", ["halfcheetah-bundled", "hopper-medium-v2", "pong", "a/b-v0"])
def test_json_and_pickle_round_trip(name: str) -> None:
    task = get_task(name)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))).config() == task.config()
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert dataclasses.replace(again, overrides=task.overrides) == task
    assert pickle.loads(pickle.dumps(task)) == task  # sent to worker processes


def test_from_dict_reads_what_older_versions_wrote() -> None:
    fields = get_task("hopper-medium-v2").to_dict()
    for later in ("clip_rewards", "actions"):
        del fields[later]
    assert Task.from_dict({**fields, "preprocessing": None}) == get_task("hopper-medium-v2")
    with pytest.raises(ConfigError, match="preprocessing"):
        Task.from_dict({**fields, "preprocessing": "atari"})


def test_a_package_before_the_id_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package_of_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Named-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert get_task("package_of_envs:Named-v0").make_env().action_space == Discrete(2)
    del gymnasium.registry["Named-v0"]
    for nonsense in ("package_of_envs:Other-v0", ".relative:Named-v0"):
        with pytest.raises(UnknownTaskError) as raised:
            get_task(nonsense)
        assert raised.value.value == nonsense


def test_make_env_of_mujoco_tasks() -> None:
    pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    for name, size in (
        ("hopper-medium-v2", 11),
        ("halfcheetah-bundled", 17),
        ("ant-medium-v2", 111),
    ):
        with get_task(name).make_env(max_episode_steps=7) as env:
            assert env.observation_space.shape == (size,)
            assert env.spec is not None
            assert env.spec.max_episode_steps == 7


def test_make_env_without_an_environment() -> None:
    with pytest.raises(UnknownTaskError) as raised:
        get_task("hopper/medium-v0").make_env()
    assert (raised.value.setting, raised.value.value) == ("env", "hopper/medium-v0")
    with pytest.raises(UnknownTaskError) as raised:
        Task("mine", env_id="Missing-v0").make_env()
    assert (raised.value.setting, raised.value.value) == ("env_id", "Missing-v0")


def test_an_id_that_moved_to_another_package() -> None:
    def moved(**_: Any) -> Any:
        raise ImportError("The environments are in gymnasium-robotics")

    gymnasium.register("Moved-v2", moved)
    try:
        with pytest.raises(UnknownTaskError, match="gymnasium-robotics") as raised:
            Task("mine", env_id="Moved-v2").make_env()
    finally:
        del gymnasium.registry["Moved-v2"]
    assert (raised.value.setting, raised.value.value) == ("env_id", "Moved-v2")


def test_ids() -> None:
    task = get_task("CartPole-v1")
    assert (task.env_id, task.dataset, task.target_returns) == ("CartPole-v1", None, ())
    assert task.config() == DecisionMambaConfig()
    assert task.make_env().action_space == Discrete(2)
    for name in ("hopper/medium-v0", "mujoco/hopper/medium-v0"):  # Minari's
        task = get_task(name)
        assert (task.dataset, task.env_id, task.target_returns) == (name, None, ())
        assert task.reference is None


def test_minari_id_found_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "mine" / "data").mkdir(parents=True)
    assert get_task("mine").dataset == "mine"
