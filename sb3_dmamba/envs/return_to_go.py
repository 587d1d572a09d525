"""The return-to-go: what rewards take off it, and the wrappers that add it to observations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, TypeAlias, overload

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.envs import stepping
from sb3_dmamba.envs.batches import find_normalizers
from sb3_dmamba.envs.stepping import (
    Lives,
    autoreset_mode,
    call_environment,
    check_rewards,
    find_flattened,
    has_lost_life,
    reset_environment,
    step_environment,
)
from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.spaces import (
    PARTS,
    arrange_space,
    flat_space,
    flatten_observation,
    is_conditioned,
    name_parts,
    with_source,
)

TargetReturn: TypeAlias = "float | Sequence[float] | NDArray[np.floating[Any]]"
Observation = dict[str, NDArray[Any]]


def subtract_rewards(
    returns_to_go: NDArray[np.float64] | float,
    rewards: Any,
    clip_rewards: bool = False,
    delayed_rewards: bool = False,
) -> NDArray[np.float64]:
    """Take the rewards of one step off the returns-to-go: ``R_{t+1} = R_t - r_t``.

    Nothing else in this package does. ConditioningError where one is not finite any longer.
    """
    taken = np.asarray(rewards, dtype=np.float64)
    if delayed_rewards or clip_rewards:  # an infinite reward is noticed all the same
        counted = np.zeros_like(taken) if delayed_rewards else np.clip(taken, -1.0, 1.0)
        taken = np.where(np.isfinite(taken), counted, np.nan)
    with np.errstate(over="ignore"):  # infinite, which is refused
        remaining: NDArray[np.float64] = returns_to_go - taken
    if not np.isfinite(remaining).all():
        problem = f"reward={rewards!r} makes a return-to-go that is not finite: give finite rewards"
        raise ConditioningError(problem, setting="reward", value=rewards)
    return remaining


class ReturnTracker:
    """The returns still to go of ``n`` environments, in float64, and where their episodes start."""

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
        self.episode_start: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
        self._lengths: NDArray[np.int64] = np.zeros(n, dtype=np.int64)  # of the episodes so far
        self._has_warned = False
        self.dtype: np.dtype[Any] | None = None  # of flat observations, where it names their parts

    def set_targets(self, targets: TargetReturn) -> None:
        """Change the targets of the episodes that start later."""
        try:
            values = np.asarray(targets, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.array(np.nan)
        if values.shape not in ((), (self.n,)) or not np.isfinite(values).all():
            problem = f"target_return={targets!r}: give a finite number, or {self.n} of them"
            raise ConditioningError(problem, setting="target_return", value=targets)
        self.targets: NDArray[np.float64] = np.array(np.broadcast_to(values, (self.n,)))

    def start(self, rows: NDArray[np.bool_]) -> None:
        """Begin episodes in ``rows``, (n,): their last observations are first ones, no others."""
        self.remaining[rows] = self.targets[rows]
        self._lengths[rows] = 0
        self.episode_start = rows.copy()

    def receive(self, rewards: Any) -> None:
        """Take the rewards (n,) of one step off the returns-to-go."""
        values = check_rewards(rewards, self.n)
        self.remaining = subtract_rewards(
            self.remaining, values, self.clip_rewards, self.delayed_rewards
        )
        self._lengths += 1
        if not self._has_warned and (self._lengths == stepping.LONG_EPISODE).any():
            self._has_warned = True
            stepping.warn_of_long_episode("give gymnasium.make its max_episode_steps")

    def condition(self, space: gym.Space[Any], observations: Any) -> Observation:
        """Return a batch of observations of ``space``, flat, with their returns-to-go."""
        flat = self._name_parts(flatten_observation(space, observations, batch=True))
        return {"observation": flat, "return_to_go": self.remaining.astype(np.float32)[:, None]}

    def condition_one(self, space: gym.Space[Any], observation: Any, row: int = 0) -> Observation:
        """Return the observation of one environment, flat, with its return-to-go."""
        to_go = self.remaining[row : row + 1].astype(np.float32)
        flat = self._name_parts(flatten_observation(space, observation))
        return {"observation": flat, "return_to_go": to_go}

    def _name_parts(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat if self.dtype is None else flat.view(self.dtype)


def conditioned_space(observation_space: gym.Space[Any]) -> spaces.Dict:
    """Return the space of observations with their return-to-go."""
    if is_conditioned(observation_space):
        problem = "the environment shows a return-to-go already: use its set_target_return"
        raise SpaceError(problem, setting="observation_space", value=observation_space)
    flat = flat_space(observation_space)
    if (parts := name_parts(flat)) is not None:  # which buffers of this dtype keep
        flat = copy.copy(flat)
        flat.dtype = np.dtype(np.float32, metadata={PARTS: tuple(parts)})
    return spaces.Dict(
        {"observation": flat, "return_to_go": spaces.Box(-np.inf, np.inf, (1,), np.float32)}
    )


class ReturnToGo:
    """Add the return still to go to what an environment shows.

    The observation becomes ``{"observation": flat observation, "return_to_go": (1,) float32}``,
    which is what ``DecisionMamba.predict`` takes. The return-to-go starts each episode at
    ``target_return`` and loses every reward, ``R_{t+1} = R_t - r_t``, in the environment's units
    (or clipped), summed in float64. Rewards are passed on as they are.

    Where an episode ends with a life and not with the game (``EpisodicLifeEnv``, ``AtariWrapper``,
    or ``terminal_on_life_loss=True`` of ``sb3_dmamba/Atari-v0``), the return-to-go goes on, and so
    does the episode: the environment continues by itself, a monitor's entries of its lives are
    joined, and ``reset`` begins a game. (Only Gymnasium's vector environments report the lost life
    as an end; it is not an ``episode_start``.)

    Calling ``ReturnToGo`` picks the subclass by the environment: :class:`ReturnToGoEnv`,
    :class:`ReturnToGoVectorEnv` or :class:`ReturnToGoVecEnv`.

    Args:
        env: A ``gymnasium.Env``, a ``gymnasium.vector.VectorEnv`` or a Stable-Baselines3
            ``VecEnv``.
        target_return: The return to ask for, in the environment's units; of the vector kinds also
            one per environment.
        clip_rewards: Whether rewards are clipped to [-1, 1] first, as in the data of Atari games.
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end, for
            data of ``reward_mode="delayed"``.

    Raises:
        SpaceError: ``env`` is none of the three kinds, or its observations have no flat view.
        ConditioningError: A target is not finite, or there is not one per environment. A step
            raises its subclass StepError for a non-finite reward.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 3.
    """

    _tracker: ReturnTracker
    _space: gym.Space[Any]  # of one wrapped environment, parts in the order in which they are shown

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
        kinds = {gym.Env: ReturnToGoEnv, VectorEnv: ReturnToGoVectorEnv, VecEnv: ReturnToGoVecEnv}
        for wrapped, kind in kinds.items():
            if isinstance(env, wrapped):
                return super().__new__(kind)
        problem = f"env={env!r}: give a gymnasium.Env or VectorEnv, or a Stable-Baselines3 VecEnv"
        raise SpaceError(problem, setting="env", value=env)

    @property
    def target_return(self) -> Any:
        """The return asked for in episodes that start from now on: a float, or (n,) float64."""
        return self._tracker.targets.copy()

    @property
    def return_to_go(self) -> Any:
        """The return still to go: a float, or (n,) float64; finite and unscaled."""
        return self._tracker.remaining.copy()

    @property
    def episode_start(self) -> Any:
        """What ``predict`` takes as ``episode_start`` together with the last observation.

        A bool, or (n,) bool: True where that observation is the first of an episode. The same in
        every autoreset mode of a Gymnasium vector environment, and False after a lost life.
        """
        return self._tracker.episode_start.copy()

    @property
    def clip_rewards(self) -> bool:
        """Whether the return-to-go loses rewards clipped to [-1, 1]."""
        return self._tracker.clip_rewards

    @property
    def delayed_rewards(self) -> bool:
        """Whether the return-to-go stays at the target until an episode's end."""
        return self._tracker.delayed_rewards

    def arrange_parts(self, space: gym.Space[Any]) -> None:
        """Show the parts of Dict observations in the order of a model's flat space, by name.

        Raises:
            SpaceError: The parts differ in their names or sizes.
        """
        shown: Any = self._condition(arrange_space(self._space, space))
        if isinstance(self, ReturnToGoVectorEnv):
            self.single_observation_space = shown
            shown = batch_space(shown, self.num_envs)
        self.observation_space = shown

    def _condition(self, space: gym.Space[Any]) -> spaces.Dict:
        """Return the space of what is shown of observations of ``space`` from now on."""
        self._space, shown = space, conditioned_space(space)
        dtype = shown["observation"].dtype
        self._tracker.dtype = dtype if dtype is not None and dtype.metadata else None
        return shown

    def set_target_return(self, target_return: TargetReturn) -> None:
        """Ask for another return from the next episodes on, and raise, as the constructor does."""
        self._tracker.set_targets(target_return)


class ReturnToGoEnv(ReturnToGo, gym.Wrapper[Observation, Any, Any, Any], RecordConstructorArgs):
    """:class:`ReturnToGo` for one ``gymnasium.Env``; its properties are numbers, not arrays."""

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
        self.observation_space = self._condition(
            with_source(env.observation_space, find_flattened(env))
        )
        self._lives = Lives(env)
        self._statistics = LifeStatistics()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the whole target to go."""
        self._lives.begin_new_game()
        observation, info = reset_environment(self.env, seed=seed, options=options)
        self._tracker.start(np.ones(1, dtype=np.bool_))
        self._statistics.forget(0)
        return self._tracker.condition_one(self._space, observation), info

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and take the reward off the return-to-go; go on where a life is lost."""
        observation, reward, terminated, truncated, info = step_environment(self.env, action)
        self._tracker.receive(reward)
        self._tracker.start(np.zeros(1, dtype=np.bool_))
        if terminated and not truncated and self._lives.game_goes_on():
            observation, _ = reset_environment(self.env)
            terminated, info = False, self._statistics.after_life(0, info)
        elif terminated or truncated:
            info = self._statistics.after_game(0, info)
        shown = self._tracker.condition_one(self._space, observation)
        return shown, reward, terminated, truncated, info

    @property
    def episode_start(self) -> bool:
        """Whether the last observation is the first of an episode, as ``predict`` takes it."""
        return bool(self._tracker.episode_start[0])

    @property
    def target_return(self) -> float:
        """The return asked for in episodes that start from now on."""
        return float(self._tracker.targets[0])

    @property
    def return_to_go(self) -> float:
        """The return still to go, in the environment's units."""
        return float(self._tracker.remaining[0])


class ReturnToGoVectorEnv(ReturnToGo, VectorWrapper):
    """:class:`ReturnToGo` for a ``gymnasium.vector.VectorEnv``, in any autoreset mode.

    Next-step: the step after an episode's end only resets, and its observation has the whole target
    to go. Same-step: ``info["final_obs"]`` gets the wrapped form of the old episode's last.
    Disabled: ``reset(options={"reset_mask": ...})`` starts the masked episodes. Lost lives are told
    from ends of games in a ``SyncVectorEnv``, and in any where ``info["is_lost_life"]`` says so.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env)
        self.single_observation_space = self._condition(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._mode = autoreset_mode(env)
        self._to_reset = np.zeros(env.num_envs, dtype=np.bool_)
        envs = getattr(env.unwrapped, "envs", ())  # those of another process cannot be asked
        self._lives = {row: lives for row, each in enumerate(envs) if (lives := Lives(each))}

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of ``options["reset_mask"]``."""
        mask = (options or {}).get("reset_mask")  # read first: gymnasium takes it out
        rows = np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.array(mask, np.bool_)
        goes_on = self._games_that_go_on()
        observations, infos = reset_environment(self.env, seed=seed, options=options)
        goes_on = np.asarray(infos.get("is_continued", goes_on), dtype=np.bool_)
        self._tracker.start(rows & ~goes_on)
        self._to_reset[rows] = False
        return self._tracker.condition(self._space, observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and take the rewards off the returns-to-go."""
        result = call_environment("step", self.env.step, actions)
        observations, rewards, terminated, truncated, infos = result
        self._tracker.receive(rewards)
        self._tracker.start(self._to_reset)  # whose step was a reset and paid nothing
        ended = np.logical_or(terminated, truncated)
        if self._mode == "NextStep":
            self._to_reset = ended & ~self._has_lost_life(infos)
        elif self._mode == "SameStep" and ended.any():
            lost = self._has_lost_life(infos.get("final_info", {}))
            infos = self._with_final_returns_to_go(infos)
            self._tracker.start(ended & ~lost)
        shown = self._tracker.condition(self._space, observations)
        return shown, rewards, terminated, truncated, infos

    def _games_that_go_on(self) -> NDArray[np.bool_]:
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        for row, lives in self._lives.items():
            goes_on[row] = lives.game_goes_on()
        return goes_on

    def _has_lost_life(self, infos: dict[str, Any]) -> NDArray[np.bool_]:
        """Return, where episodes ended (``infos`` are of their last steps), which games go on."""
        if "is_lost_life" in infos:
            return np.array(infos["is_lost_life"], dtype=np.bool_)
        said = self._games_that_go_on()
        if self._mode == "SameStep" and "lives" in infos:  # the games have been reset since
            for row in self._lives:
                said[row] = infos["lives"][row] > 0
        return said

    def _with_final_returns_to_go(self, infos: dict[str, Any]) -> dict[str, Any]:
        if "final_obs" not in infos:
            return infos
        final = infos["final_obs"].copy()  # (n,) objects, None where no episode ended
        for row, observation in enumerate(final):
            if observation is not None:
                final[row] = self._tracker.condition_one(self._space, observation, row)
        return {**infos, "final_obs": final}


class ReturnToGoVecEnv(ReturnToGo, VecEnvWrapper):
    """:class:`ReturnToGo` for a Stable-Baselines3 ``VecEnv``.

    Where a ``VecNormalize`` is inside, the rewards that it scaled are passed on, but the
    return-to-go is counted with the original ones, so a target means the same with and without
    it. ``info["terminal_observation"]`` gets the wrapped form of an episode's last observation.
    """

    def __init__(
        self,
        env: VecEnv,
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env, self._condition(env.observation_space))
        normalizers = find_normalizers(env)  # the innermost is paid the environment's rewards
        self._reward_source = normalizers[-1] if normalizers else None
        self._may_lose_lives = np.array(env.env_is_wrapped(EpisodicLifeEnv))
        self._statistics = LifeStatistics()

    def reset(self) -> Any:
        """Start an episode in every environment, with the whole target to go."""
        self._begin_new_games()
        goes_on = self._games_that_go_on(self._may_lose_lives)  # where a process was not told
        observations = self.venv.reset()
        self._tracker.start(~goes_on)
        self._tracker.episode_start[:] = True
        for row in range(self.num_envs):
            self._statistics.forget(row)
        return self._tracker.condition(self._space, observations)

    def step_wait(self) -> Any:
        """Finish the step, and take the rewards off the returns-to-go.

        A lost life is not done: the environment has gone on with the game already.
        """
        result = call_environment("step_wait", self.venv.step_wait)
        observations, rewards, dones, infos = result
        source = self._reward_source
        self._tracker.receive(rewards if source is None else source.get_original_reward())
        if dones.any():
            infos, lost = list(infos), self._has_lost_life(dones, infos)
            for row in np.flatnonzero(dones).tolist():
                if "terminal_observation" in infos[row]:
                    last = infos[row]["terminal_observation"]
                    terminal = self._tracker.condition_one(self._space, last, row)
                    infos[row] = {**infos[row], "terminal_observation": terminal}
                join = self._statistics.after_life if lost[row] else self._statistics.after_game
                infos[row] = join(row, infos[row])
            dones = dones & ~lost
        self._tracker.start(dones)
        return self._tracker.condition(self._space, observations), rewards, dones, infos

    def _has_lost_life(
        self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> NDArray[np.bool_]:
        """Return which of the episodes that ended cost a life and not the game."""
        lost, doubtful = np.zeros((2, self.num_envs), dtype=np.bool_)
        for row in np.flatnonzero(dones):
            if self._may_lose_lives[row] or "is_lost_life" in infos[row]:
                said = has_lost_life(infos[row])
                lost[row], doubtful[row] = bool(said), said is None
        return lost | self._games_that_go_on(doubtful)

    def _begin_new_games(self) -> None:
        """Make the next reset start games where ``EpisodicLifeEnv`` would go on with one."""
        rows = np.flatnonzero(self._may_lose_lives).tolist()
        local = getattr(self.unwrapped, "envs", None)
        if local is not None:
            for row in rows:
                Lives(local[row]).begin_new_game()
        elif rows:
            self.venv.env_method("set_wrapper_attr", "was_real_done", True, indices=rows)

    def _games_that_go_on(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Ask the environments in ``rows``, (n,) bool, whether their games go on."""
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        if rows.any():
            indices = np.flatnonzero(rows).tolist()
            goes_on[indices] = np.logical_not(self.venv.get_attr("was_real_done", indices=indices))
        return goes_on


class LifeStatistics:
    """Join a monitor's entries of single lives into one entry of the game."""

    def __init__(self) -> None:
        self._noted: dict[int, dict[str, Any]] = {}  # of each environment

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
        if row in self._noted and "episode" in info:
            info = {**info, "episode": self._join(row, info["episode"])}
        self.forget(row)
        return info

    def _join(self, row: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        before = self._noted.get(row, {"r": 0.0, "l": 0})
        return {**entry, "r": before["r"] + entry["r"], "l": before["l"] + entry["l"]}
