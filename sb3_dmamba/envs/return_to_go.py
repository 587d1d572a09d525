"""``ReturnToGo``: wrappers that add the return-to-go to the observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, SupportsFloat, TypeAlias, overload

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.envs.stepping import find_normalizers
from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.spaces import flat_space, flatten_observation, is_conditioned

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from stable_baselines3.common.vec_env import VecEnv


def has_lost_life(info: Mapping[str, Any]) -> bool | None:
    """Say whether the end of an episode cost a life and not the game; None where nothing says.

    Args:
        info: What the last step returned, below ``EpisodicLifeEnv`` or from our Atari games.
            Other wrappers' resets may have stepped since, so that its ``was_real_done`` is stale.
    """
    if "is_lost_life" in info:
        return bool(info["is_lost_life"])
    if "lives" in info:
        return bool(info["lives"] > 0) and not info.get("TimeLimit.truncated", False)
    return None


def begin_new_game(env: gym.Env[Any, Any]) -> None:
    """Make the next reset start a game, even where ``EpisodicLifeEnv`` is in the middle of one."""
    while True:
        if "was_real_done" in vars(env):
            env.was_real_done = True  # type: ignore[attr-defined]
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


class LifeStatistics:
    """Joins what a monitor noted of each life into one entry of the game.

    A monitor outside of what ends episodes with lives (``Monitor``, ``VecMonitor``,
    ``RecordEpisodeStatistics``) reports every life in ``info["episode"]`` as an episode of its
    own. One inside reports whole games, of which nothing needs to be joined.
    """

    def __init__(self) -> None:
        self._noted: dict[int, dict[str, Any]] = {}

    def forget(self, row: int) -> None:
        """Begin a game in environment ``row``."""
        self._noted.pop(row, None)

    def after_life(self, row: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """Note a life's entry, and return ``info`` without it."""
        info = dict(info)
        entry = info.pop("episode", None)
        if entry is not None:
            self._noted[row] = self._join(row, entry)
        return info

    def after_game(self, row: int, info: dict[str, Any]) -> dict[str, Any]:
        """Return ``info`` with the game's entry where it had the last life's."""
        if row not in self._noted:
            return info
        if "episode" in info:
            info = {**info, "episode": self._join(row, info["episode"])}
        self.forget(row)
        return info

    def _join(self, row: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        before = self._noted.get(row, {"r": 0.0, "l": 0})
        return {**entry, "r": before["r"] + entry["r"], "l": before["l"] + entry["l"]}


TargetReturn: TypeAlias = "float | Sequence[float] | NDArray[np.floating[Any]]"


class ReturnToGo:
    """Add the return still to go to what an environment shows.

    The observation becomes ``{"observation": flat observation, "return_to_go": (1,) float32}``,
    which is what ``DecisionMamba.predict`` takes. The return-to-go starts each episode at
    ``target_return`` and loses every reward: ``R_{t+1} = R_t - r_t``, in the environment's units
    (or clipped to [-1, 1], as Atari data is), summed in float64. The rewards themselves are passed
    on as they are. Where an episode ends with a life and not with the game (Stable-Baselines3's
    ``EpisodicLifeEnv``, ``AtariWrapper``'s default, or ``terminal_on_life_loss=True`` of
    ``sb3_dmamba/Atari-v0``), the return-to-go goes on: it is the game's return that was asked for,
    and so is the episode. The environment goes on by itself after a lost life, which is no end of
    the episode, what a monitor noted of its lives is joined, and ``reset`` begins a game. (Only
    Gymnasium's vector environments report the lost life as an end; it is not an ``episode_start``.)
    Calling ``ReturnToGo`` picks the class by the environment:
    :class:`ReturnToGoEnv`, :class:`ReturnToGoVectorEnv` or :class:`ReturnToGoVecEnv`; all three
    are instances of ``ReturnToGo``.

    Args:
        env: A ``gymnasium.Env``, a ``gymnasium.vector.VectorEnv`` or a Stable-Baselines3
            ``VecEnv``. Dict, Tuple and Discrete observations are flattened.
        target_return: The return to ask for, in the environment's units; for the two vector
            kinds also one per environment.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1], for a model of
            data whose rewards were clipped; targets are then in those units.
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end, for
            a model of data whose rewards came there (``reward_mode="delayed"``).

    Raises:
        SpaceError: ``env`` is none of the three kinds, or its observations have no flat view.
        ConditioningError: A target is not a finite number, or their count is not the number of
            environments.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 3.
    """

    wraps: ClassVar[type[Any]]
    _kinds: ClassVar[list[type[ReturnToGo]]] = []
    _tracker: ReturnTracker
    _episode_start: NDArray[np.bool_]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "wraps" in cls.__dict__:
            ReturnToGo._kinds.append(cls)

    @overload
    def __new__(
        cls,
        env: VecEnv,
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoVecEnv: ...
    @overload
    def __new__(
        cls,
        env: VectorEnv[Any, Any, Any],
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoVectorEnv: ...
    @overload
    def __new__(
        cls,
        env: gym.Env[Any, Any],
        target_return: float,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoEnv: ...
    def __new__(
        cls,
        env: Any = None,
        target_return: Any = None,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> Any:
        """Make an instance of the class that fits ``env``; ``__init__`` follows as usual."""
        if cls is not ReturnToGo:
            return super().__new__(cls)
        for kind in cls._kinds:
            if isinstance(env, kind.wraps):
                return super().__new__(kind)
        raise SpaceError(
            f"cannot add a return-to-go to {env!r} ({type(env).__name__}): give a gymnasium.Env, "
            "a gymnasium.vector.VectorEnv or a stable_baselines3 VecEnv"
        )

    @property
    def target_return(self) -> Any:
        """The return asked for in episodes that start from now on: a float, or (n,) float64."""
        return self._tracker.targets.copy()

    @property
    def return_to_go(self) -> Any:
        """The return still to go: a float, or (n,) float64; inf-free and unscaled."""
        return self._tracker.remaining.copy()

    @property
    def episode_start(self) -> Any:
        """What ``predict`` takes as ``episode_start`` together with the last observation.

        A bool, or (n,) bool: True where that observation is the first of an episode. The same in
        every autoreset mode of a Gymnasium vector environment, and False after a lost life.
        """
        return self._episode_start.copy()

    @property
    def clip_rewards(self) -> bool:
        """Whether the return-to-go loses rewards clipped to [-1, 1]."""
        return self._tracker.clip_rewards

    @property
    def delayed_rewards(self) -> bool:
        """Whether the return-to-go stays at the target until an episode's end."""
        return self._tracker.delayed_rewards

    def set_target_return(self, target_return: TargetReturn) -> None:
        """Ask for another return, from each environment's next episode on.

        Args:
            target_return: As in the constructor.

        Raises:
            ConditioningError: As in the constructor.
        """
        self._tracker.set_targets(target_return)


class ReturnTracker:
    """The returns still to go of ``n`` environments, in float64.

    Args:
        n: Number of environments.
        targets: One target return, or one per environment.
        clip_rewards: Whether rewards are clipped to [-1, 1] before they are taken off.
        delayed_rewards: Whether none is taken off.

    Raises:
        ConditioningError: As :class:`ReturnToGo`.
    """

    def __init__(
        self,
        n: int,
        targets: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self.n = n
        self.clip_rewards = clip_rewards
        self.delayed_rewards = delayed_rewards
        self.set_targets(targets)
        self.remaining: NDArray[np.float64] = self.targets.copy()

    def set_targets(self, targets: TargetReturn) -> None:
        """Change the targets of the episodes that start later."""
        try:
            values = np.asarray(targets, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConditioningError(
                f"target_return={targets!r}: give a number, or one per environment"
            ) from None
        if values.ndim > 1 or (values.ndim == 1 and len(values) != self.n):
            raise ConditioningError(
                f"target_return has shape {values.shape} for {self.n} environment(s): "
                "give one number, or one per environment"
            )
        if not np.isfinite(values).all():
            raise ConditioningError(f"target_return={targets!r}: give finite numbers")
        self.targets: NDArray[np.float64] = np.array(np.broadcast_to(values, (self.n,)))

    def start(self, rows: NDArray[np.bool_] | slice = slice(None)) -> None:
        """Begin an episode in ``rows`` ((n,) bool, or all)."""
        self.remaining[rows] = self.targets[rows]

    def receive(self, rewards: Any) -> None:
        """Take the rewards (n,) of one step off the returns-to-go."""
        values = np.asarray(rewards, dtype=np.float64).reshape(self.n)
        self.remaining -= conditioning_rewards(values, self.clip_rewards, self.delayed_rewards)
        if not np.isfinite(self.remaining).all():
            raise ConditioningError(
                f"the environment returned the reward(s) {rewards!r}: the return-to-go is no "
                "longer a finite number"
            )

    def as_column(self) -> NDArray[np.float32]:
        """Return the returns-to-go as (n, 1) float32, a fresh array."""
        return self.remaining.astype(np.float32)[:, None]


def conditioning_rewards(rewards: Any, clip_rewards: bool, delayed_rewards: bool = False) -> Any:
    """Return what ``rewards`` take off the return-to-go.

    Args:
        rewards: Of one step; what is not finite stays so, to be noticed.
        clip_rewards: Whether they are clipped to [-1, 1].
        delayed_rewards: Whether they take nothing off, since the episode pays at its end.
    """
    if delayed_rewards:
        return np.where(np.isfinite(rewards), 0.0, np.nan)
    if not clip_rewards:
        return rewards
    # an infinite reward is not a reward of +-1: NaN, so that it does not go unnoticed
    return np.where(np.isfinite(rewards), np.clip(rewards, -1.0, 1.0), np.nan)


def conditioned_space(observation_space: gym.Space[Any]) -> spaces.Dict:
    """Return the space of observations with their return-to-go.

    Raises:
        SpaceError: The observations have no flat view, or one with a return-to-go already.
    """
    if is_conditioned(observation_space):
        raise SpaceError(
            "the environment shows a return-to-go already: ask for another return with its "
            "set_target_return, or model.target_return for model.get_env()"
        )
    return spaces.Dict(
        {
            "observation": flat_space(observation_space),
            "return_to_go": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )


Observation = dict[str, NDArray[Any]]


class ReturnToGoEnv(ReturnToGo, gym.Wrapper[Observation, Any, Any, Any], RecordConstructorArgs):
    """:class:`ReturnToGo` for one ``gymnasium.Env``.

    Args:
        env: The environment.
        target_return: The return to ask for, in the environment's units.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        SpaceError: The observations have no flat view.
        ConditioningError: ``target_return`` is not one finite number.
    """

    wraps: ClassVar[type[Any]] = gym.Env

    def __init__(
        self,
        env: gym.Env[Any, Any],
        target_return: float,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(1, target_return, clip_rewards, delayed_rewards)
        RecordConstructorArgs.__init__(
            self,
            target_return=self.target_return,
            clip_rewards=clip_rewards,
            delayed_rewards=delayed_rewards,
        )
        gym.Wrapper.__init__(self, env)
        self.observation_space = conditioned_space(env.observation_space)
        self._may_lose_lives = env.has_wrapper_attr("was_real_done")
        self._lives = LifeStatistics()
        self._episode_start = np.ones(1, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the whole target to go."""
        if self._may_lose_lives:
            begin_new_game(self.env)
        observation, info = self.env.reset(seed=seed, options=options)
        self._tracker.start()
        self._lives.forget(0)
        self._episode_start[:] = True
        return self._with_return_to_go(observation), info

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and take the reward off the return-to-go; go on where a life is lost.

        Raises:
            ConditioningError: The reward is not finite.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._tracker.receive(reward)
        self._episode_start[:] = False
        if terminated and not truncated and self._game_goes_on():
            observation, _ = self.env.reset()
            terminated, info = False, self._lives.after_life(0, info)
        elif terminated or truncated:
            info = self._lives.after_game(0, info)
        return self._with_return_to_go(observation), reward, terminated, truncated, info

    @property
    def episode_start(self) -> bool:
        """Whether the last observation is the first of an episode, as ``predict`` takes it."""
        return bool(self._episode_start[0])

    @property
    def target_return(self) -> float:
        """The return asked for in episodes that start from now on."""
        return float(self._tracker.targets[0])

    @property
    def return_to_go(self) -> float:
        """The return still to go, in the environment's units."""
        return float(self._tracker.remaining[0])

    def _game_goes_on(self) -> bool:
        return self._may_lose_lives and not self.env.get_wrapper_attr("was_real_done")

    def _with_return_to_go(self, observation: Any) -> Observation:
        flat = flatten_observation(self.env.observation_space, observation)
        return {
            "observation": np.asarray(flat),
            "return_to_go": self._tracker.as_column()[0],
        }


Observations = dict[str, NDArray[Any]]


class ReturnToGoVectorEnv(ReturnToGo, VectorWrapper):
    """:class:`ReturnToGo` for a ``gymnasium.vector.VectorEnv``.

    Follows the environment's autoreset mode. Next-step (Gymnasium 1.0, and the default later):
    the step after an episode's end only resets, its reward is not counted, and its observation
    has the whole target to go. Same-step: the step that ends an episode shows the new one's first
    observation, and ``info["final_obs"]`` gets the wrapped form of the old one's last. Disabled:
    ``reset(options={"reset_mask": ...})`` starts the masked episodes. Lost lives are told from
    ends of games in a ``SyncVectorEnv``, and in any where ``info["is_lost_life"]`` says so, as
    ``sb3_dmamba/Atari-v0`` does.

    Args:
        env: The vector environment.
        target_return: The return to ask for, in the environment's units: one, or one per
            environment.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        SpaceError: The observations have no flat view.
        ConditioningError: A target is not finite, or their count is not ``env.num_envs``.
    """

    wraps: ClassVar[type[Any]] = VectorEnv

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env)
        self.single_observation_space = conditioned_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        # gymnasium 1.0 has no AutoresetMode and always resets on the next step
        mode = env.metadata.get("autoreset_mode")
        self._mode: str = "NextStep" if mode is None else str(getattr(mode, "value", mode))
        self._to_reset = np.zeros(env.num_envs, dtype=np.bool_)
        self._episode_start = np.ones(env.num_envs, dtype=np.bool_)
        envs = getattr(env.unwrapped, "envs", ())  # those of another process cannot be asked
        self._with_lives = [
            (row, each) for row, each in enumerate(envs) if each.has_wrapper_attr("was_real_done")
        ]

    def reset(
        self,
        *,
        seed: int | list[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of ``options["reset_mask"]``."""
        mask = (options or {}).get("reset_mask")  # read first: gymnasium takes it out
        rows: NDArray[np.bool_] = np.ones(self.num_envs, dtype=np.bool_)
        if mask is not None:
            rows = np.array(mask, dtype=np.bool_)
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        for row, env in self._with_lives:
            goes_on[row] = not env.get_wrapper_attr("was_real_done")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        goes_on = np.asarray(infos.get("is_continued", goes_on), dtype=np.bool_)
        self._begin(rows & ~goes_on)
        self._to_reset[rows] = False
        return self._with_returns_to_go(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and take the rewards off the returns-to-go.

        Raises:
            ConditioningError: A reward is not finite.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._tracker.receive(rewards)
        self._begin(self._to_reset)  # whose step was a reset and paid nothing
        ended = np.logical_or(terminated, truncated)
        if self._mode == "NextStep":
            self._to_reset = ended & ~self._has_lost_life(infos)
        elif self._mode == "SameStep" and ended.any():
            lost = self._has_lost_life(infos.get("final_info", {}))
            infos = self._with_final_returns_to_go(infos)
            self._begin(ended & ~lost)
        return self._with_returns_to_go(observations), rewards, terminated, truncated, infos

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        """Note that the observations in ``rows``, (n,) bool, and no others begin episodes."""
        self._tracker.start(rows)
        self._episode_start = rows.copy()

    def _has_lost_life(self, infos: dict[str, Any]) -> NDArray[np.bool_]:
        """Say, where episodes ended (``infos`` are of their last steps), which games go on."""
        said = np.zeros(self.num_envs, dtype=np.bool_)
        if "is_lost_life" in infos:
            return said | np.asarray(infos["is_lost_life"], dtype=np.bool_)
        for row, env in self._with_lives:
            lives = infos.get("lives")
            one = {} if lives is None else {"lives": lives[row]}
            lost = has_lost_life(one) if self._mode == "SameStep" else None
            said[row] = not env.get_wrapper_attr("was_real_done") if lost is None else lost
        return said

    def _with_returns_to_go(self, observations: Any) -> Observations:
        flat = flatten_observation(self.env.single_observation_space, observations, batch=True)
        return {"observation": flat, "return_to_go": self._tracker.as_column()}

    def _with_final_returns_to_go(self, infos: dict[str, Any]) -> dict[str, Any]:
        if "final_obs" not in infos:
            return infos
        column = self._tracker.as_column()
        final = infos["final_obs"].copy()  # (n,) objects, None where no episode ended
        for row, observation in enumerate(final):
            if observation is not None:
                flat = flatten_observation(self.env.single_observation_space, observation)
                final[row] = {"observation": flat, "return_to_go": column[row]}
        return {**infos, "final_obs": final}


class ReturnToGoVecEnv(ReturnToGo, VecEnvWrapper):
    """:class:`ReturnToGo` for a Stable-Baselines3 ``VecEnv``.

    Where a ``VecNormalize`` is inside, the rewards that it scaled are passed on, but the
    return-to-go is counted with the original ones, so a target means the same with and without
    it. ``info["terminal_observation"]`` gets the wrapped form of an episode's last observation.

    Args:
        env: The vector environment.
        target_return: The return to ask for, in the environment's units: one, or one per
            environment.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        SpaceError: The observations have no flat view.
        ConditioningError: A target is not finite, or their count is not ``env.num_envs``.
    """

    wraps: ClassVar[type[Any]] = VecEnv

    def __init__(
        self,
        env: VecEnv,
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env, conditioned_space(env.observation_space))
        normalizers = find_normalizers(env)  # the innermost is paid the environment's rewards
        self._reward_source = normalizers[-1] if normalizers else None
        self._may_lose_lives = np.array(env.env_is_wrapped(EpisodicLifeEnv))
        self._lives = LifeStatistics()
        self._episode_start = np.ones(env.num_envs, dtype=np.bool_)

    def reset(self) -> Any:
        """Start an episode in every environment, with the whole target to go."""
        self._begin_new_games()
        goes_on = self._goes_on(self._may_lose_lives)  # where a subprocess could not be told
        observations = self.venv.reset()
        self._tracker.start(~goes_on)
        for row in range(self.num_envs):
            self._lives.forget(row)
        self._episode_start = np.ones(self.num_envs, dtype=np.bool_)
        return self._with_returns_to_go(observations)

    def step_wait(self) -> Any:
        """Finish the step, and take the rewards off the returns-to-go.

        A lost life is not done: the environment has gone on with the game already.

        Raises:
            ConditioningError: A reward is not finite.
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        normalizer = self._reward_source
        raw = rewards if normalizer is None else normalizer.get_original_reward()
        self._tracker.receive(raw)
        self._episode_start = np.zeros(self.num_envs, dtype=np.bool_)
        if dones.any():
            infos = self._with_terminal_returns_to_go(infos)
            lost = self._has_lost_life(dones, infos)
            for row in np.flatnonzero(dones):
                join = self._lives.after_life if lost[row] else self._lives.after_game
                infos[row] = join(int(row), infos[row])
            dones = dones & ~lost
            self._tracker.start(dones)
            self._episode_start = dones.copy()
        return self._with_returns_to_go(observations), rewards, dones, infos

    def _has_lost_life(
        self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> NDArray[np.bool_]:
        """Say which of the episodes that ended cost a life and not the game."""
        lost = np.zeros(self.num_envs, dtype=np.bool_)
        doubtful = np.zeros(self.num_envs, dtype=np.bool_)
        for row in np.flatnonzero(dones):
            if self._may_lose_lives[row] or "is_lost_life" in infos[row]:
                said = has_lost_life(infos[row])
                lost[row], doubtful[row] = bool(said), said is None
        return lost | self._goes_on(doubtful)

    def _begin_new_games(self) -> None:
        """Make the next reset start games where ``EpisodicLifeEnv`` would go on with one."""
        rows = np.flatnonzero(self._may_lose_lives).tolist()
        local = getattr(self.unwrapped, "envs", None)
        if local is not None:
            for row in rows:
                begin_new_game(local[row])
        elif rows:
            self.venv.env_method("set_wrapper_attr", "was_real_done", True, indices=rows)

    def _goes_on(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Ask the environments in ``rows``, (n,) bool, whether their games are under way."""
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        if rows.any():
            indices = np.flatnonzero(rows)
            goes_on[indices] = ~np.array(
                self.venv.get_attr("was_real_done", indices=indices.tolist()), dtype=np.bool_
            )
        return goes_on

    def _with_returns_to_go(self, observations: Any) -> Observations:
        flat = flatten_observation(self.venv.observation_space, observations, batch=True)
        return {"observation": flat, "return_to_go": self._tracker.as_column()}

    def _with_terminal_returns_to_go(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = self._tracker.as_column()
        space = self.venv.observation_space
        wrapped = list(infos)
        for row, info in enumerate(infos):
            if "terminal_observation" in info:
                flat = flatten_observation(space, info["terminal_observation"])
                terminal = {"observation": flat, "return_to_go": column[row]}
                wrapped[row] = {**info, "terminal_observation": terminal}
        return wrapped
