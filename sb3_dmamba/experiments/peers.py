"""Peers: d3rlpy's offline algorithms, trained by d3rlpy and evaluated as Decision Mamba is.

A variant of an experiment whose ``algorithm`` is ``"d3rlpy:IQL"``, or another algorithm of
``d3rlpy.algos`` for vectors and continuous actions, is executed by this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, MissingDependencyError, SpaceError
from sb3_dmamba.evaluation.report import EvaluationReport
from sb3_dmamba.evaluation.rollouts import evaluate_targets
from sb3_dmamba.experiments.runs import Run

try:
    import d3rlpy
except ModuleNotFoundError as error:
    if error.name != "d3rlpy":
        raise
    raise MissingDependencyError("d3rlpy", "train d3rlpy's algorithms", "d3rlpy") from error

_UPDATES_OF_AN_EPOCH = 1000  # d3rlpy averages the losses since an epoch's start again and again


@dataclasses.dataclass(frozen=True)
class History:
    """The last steps of ``n`` episodes, right-aligned; without steps for a policy that needs none.

    Shapes: ``observations`` (n, K, O), ``actions`` (n, K, A), ``returns_to_go`` (n, K), ``lengths``
    (n,) steps since each episode's start.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    returns_to_go: NDArray[np.float32]
    lengths: NDArray[np.int64]

    def take(self, rows: Any) -> History:
        """Return the history of some rows alone."""
        return History(*(each[rows] for each in vars(self).values()))

    def reset(self, mask: Any) -> History:
        """Return the history with the rows of ``mask`` (n,) emptied."""
        arrays = [each.copy() for each in vars(self).values()]
        for each in arrays:
            each[mask] = 0
        return History(*arrays)


class Peer:
    """An algorithm of d3rlpy with the part of ``DecisionMamba`` that executing a run needs.

    Args:
        run: The run.
        device: ``"cpu"``, ``"cuda"``, ...; ``"auto"`` is the GPU where there is one.

    Raises:
        ConfigError: d3rlpy has no such algorithm, or a setting is not its config's.
    """

    def __init__(self, run: Run, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.run, self.device = run, torch.device(device)
        self.memory = run.evaluation.memories[0]
        self.num_timesteps = 0  # updates, as of DecisionMamba
        name = run.algorithm.removeprefix("d3rlpy:")
        config_type = getattr(d3rlpy.algos, f"{name}Config", None)
        if config_type is None:
            message = f"algorithm={run.algorithm!r}: d3rlpy.algos has no {name}Config"
            raise ConfigError(message, setting="algorithm", value=run.algorithm)
        fields = config_type().serialize_to_dict()
        for each in run.algorithm_settings:
            if each not in fields:
                message = f"{name}Config has no field {each!r}: it has {', '.join(fields)}"
                raise ConfigError(message, setting=each, choices=fields)
        config = config_type.deserialize_from_dict({**fields, **run.algorithm_settings})
        self.algo = config.create(device=str(self.device))
        self.is_conditioned = isinstance(self.algo, d3rlpy.algos.DecisionTransformer)

    @property
    def policy(self) -> nn.ModuleList:
        """The trained networks, without copies that follow them slowly."""
        networks = vars(self.algo.impl.modules).items()
        return nn.ModuleList(
            each for name, each in networks if isinstance(each, nn.Module) and "targ" not in name
        )

    def fit(self, trajectories: Trajectories, after_update: Callable[[], None]) -> None:
        """Train with d3rlpy's own loop, from its global random numbers.

        Raises:
            SpaceError: Observations or actions are not vectors of numbers.
        """
        self.observation_space, self.action_space = _check_spaces(trajectories)
        low, high = self.action_space.low, self.action_space.high
        bounded = np.isfinite(low).all() and np.isfinite(high).all()
        if bounded and not ((low == -1.0).all() and (high == 1.0).all()):  # d3rlpy's ends in a tanh
            scaler = d3rlpy.preprocessing.MinMaxActionScaler(minimum=low, maximum=high)
            self.algo.config.action_scaler = scaler
        d3rlpy.seed(self.run.seed)

        def count(*_: Any) -> None:
            self.num_timesteps += 1
            after_update()

        n_updates, buffer = self.run.config.resolved_n_updates, trajectories.to_d3rlpy()
        rest = n_updates % _UPDATES_OF_AN_EPOCH
        for n_steps in filter(None, (n_updates - rest, rest)):
            self.algo.fit(
                buffer,
                n_steps=n_steps,
                n_steps_per_epoch=min(n_steps, _UPDATES_OF_AN_EPOCH),
                logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
                show_progress=False,
                callback=count,
            )

    def evaluate(
        self, target_returns: Any, n_episodes: int, *, memory: str, **how: Any
    ) -> EvaluationReport:
        """Evaluate as Decision Mamba is; without a target, one return stands for all of them."""
        targets = list(target_returns)
        asked = targets if self.is_conditioned else targets[:1]
        task = self.run.task
        how |= {"memory": memory, "clip_rewards": task.clip_rewards}
        report = evaluate_targets(self, task.make_env, asked, n_episodes, **how)
        if self.is_conditioned:
            return report
        (result,) = report.results
        results = tuple(dataclasses.replace(result, target_return=each) for each in targets)
        return dataclasses.replace(report, results=results)

    def save(self, path: Path, exclude: Any = ()) -> None:
        """Write d3rlpy's file beside where a model file would lie, once the training is over."""
        if self.num_timesteps == self.run.config.resolved_n_updates:
            self.algo.save(str(path.with_suffix(".d3")))

    def initial_state(self, n: int, memory: Any = None) -> History:
        """Return the empty history of ``n`` episodes."""
        length = self.algo.config.context_size if self.is_conditioned else 0
        return History(
            observations=np.zeros((n, length, *self.observation_space.shape), np.float32),
            actions=np.zeros((n, length, *self.action_space.shape), np.float32),
            returns_to_go=np.zeros((n, length), np.float32),
            lengths=np.zeros(n, np.int64),
        )

    def act(
        self,
        observations: NDArray[Any],
        returns_to_go: NDArray[np.float32],
        state: History,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], History]:
        """Choose actions; the arguments are those of ``DecisionMambaPolicy.act``."""
        observations = np.asarray(observations, dtype=np.float32)
        if self.is_conditioned:
            state = _append(state, observations, returns_to_go)
            actions = self._act_on(state)
            state.actions[:, -1] = actions
        elif deterministic:
            actions = self.algo.predict(observations)
        else:
            actions = self.algo.sample_action(observations)
        return np.clip(actions, self.action_space.low, self.action_space.high), state

    @torch.no_grad()
    def _act_on(self, state: History) -> NDArray[np.float32]:
        """Run the transformer on all episodes at once; d3rlpy's wrapper runs it on one.

        Source: d3rlpy 2.8.1, ``StatefulTransformerWrapper`` and ``TransformerAlgoBase.predict``:
        steps are counted from 1, and what precedes an episode is zeros before they are scaled.
        """
        config, length = self.algo.config, state.returns_to_go.shape[1]
        steps = state.lengths[:, None] + np.arange(1 - length, 1)  # (n, K), from 1
        is_real = steps > 0
        numbers = np.where(is_real, np.minimum(steps, config.max_timestep), 0)
        arrays = state.observations, state.actions, state.returns_to_go[..., None]
        tensors = [torch.from_numpy(each.copy()).to(self.device) for each in arrays]
        scalers = config.observation_scaler, config.action_scaler, config.reward_scaler
        scaled = [
            scaler.transform(each) if scaler else each
            for each, scaler in zip(tensors, scalers, strict=True)
        ]
        timesteps = torch.from_numpy(numbers).to(self.device)
        padding = torch.from_numpy(~is_real).float().to(self.device)
        modules = self.algo.impl.modules
        modules.set_eval()  # d3rlpy's update switches back
        actions = modules.transformer(*scaled, timesteps, padding)[:, -1]  # (n, A)
        if config.action_scaler:
            actions = config.action_scaler.reverse_transform(actions)
        chosen: NDArray[np.float32] = actions.cpu().numpy()
        return chosen


def _append(
    state: History, observations: NDArray[np.float32], returns_to_go: NDArray[np.float32]
) -> History:
    arrays = {name: np.roll(each, -1, axis=1) for name, each in list(vars(state).items())[:3]}
    arrays["observations"][:, -1] = observations
    arrays["actions"][:, -1] = 0.0  # not chosen yet
    arrays["returns_to_go"][:, -1] = returns_to_go
    return History(**arrays, lengths=state.lengths + 1)


def _check_spaces(trajectories: Trajectories) -> tuple[spaces.Box, spaces.Box]:
    for name in ("observation_space", "action_space"):
        space = getattr(trajectories, name)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            message = f"{name} is {space}: the peers of d3rlpy take vectors of numbers alone"
            raise SpaceError(message, setting=name, value=space)
    return trajectories.observation_space, trajectories.action_space  # type: ignore[return-value]
