"""Stable-Baselines3's callbacks, for an algorithm that needs no environment to learn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    EventCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmamba.data.normalizers import check_returns_unscaled
from sb3_dmamba.errors import ConditioningError, UnknownTaskError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["Evaluations", "as_callbacks", "explain_missing_environment", "start_callbacks"]


class Evaluations(EvalCallback):
    """Stable-Baselines3's evaluations, each of them printed in one line where that is asked for.

    Args:
        env: Conditioned environment to evaluate in.
        eval_freq: Updates between two evaluations.
        n_eval_episodes: Episodes of each.
        verbose: 0 prints nothing.
    """

    def __init__(self, env: VecEnv, eval_freq: int, n_eval_episodes: int, verbose: int) -> None:
        super().__init__(env, eval_freq=eval_freq, n_eval_episodes=n_eval_episodes, verbose=0)
        self._prints = verbose > 0
        self._returns: list[float] = []

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self._returns = locals_["episode_rewards"]  # evaluate_policy's own list, whole at its end

    def _on_step(self) -> bool:
        self._returns = []
        keep_going = super()._on_step()
        if self._returns and self._prints:
            mean, deviation = np.mean(self._returns), np.std(self._returns)
            print(  # noqa: T201  # a progress bar sends it above itself
                f"update {self.num_timesteps}: mean return {mean:.2f}, "
                f"standard deviation {deviation:.2f}, {len(self._returns)} episodes"
            )
        return keep_going


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """Return whatever Stable-Baselines3 takes as ``callback`` as a list of callback objects."""
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]


def start_callbacks(model: BaseAlgorithm, callbacks: Sequence[BaseCallback]) -> BaseCallback:
    """Join callbacks and tie them to a model.

    An ``EvalCallback`` asks for the model's environment; where no other is known it is the one
    that the callback evaluates in.

    Raises:
        ConditioningError: An ``EvalCallback`` evaluates in an environment without return-to-go,
            or in one that scales it.
    """
    for callback in _evaluations(callbacks):
        space = callback.eval_env.observation_space
        if not isinstance(space, spaces.Dict) or "return_to_go" not in space.spaces:
            raise ConditioningError(
                "an EvalCallback evaluates in an environment that shows no return-to-go: give it "
                "EvalCallback(ReturnToGo(env, target_return), ...), or use fit(eval_env=env, "
                "eval_freq=...)",
                setting="eval_env",
            )
        check_returns_unscaled(callback.eval_env)
        if model.get_env() is None:
            model.set_env(callback.eval_env)
    with warnings.catch_warnings():
        # It matters to algorithms that learn in theirs; this one only lends it to callbacks.
        warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
        return model._init_callback(list(callbacks))


def _evaluations(callbacks: Sequence[BaseCallback]) -> Iterator[EvalCallback]:
    """Yield every ``EvalCallback``, those inside other callbacks included."""
    for callback in callbacks:
        if isinstance(callback, EvalCallback):
            yield callback
        elif isinstance(callback, CallbackList):
            yield from _evaluations(callback.callbacks)
        elif isinstance(callback, EventCallback) and callback.callback is not None:
            yield from _evaluations([callback.callback])


@contextmanager
def explain_missing_environment(model: BaseAlgorithm) -> Iterator[None]:
    """Turn Stable-Baselines3's assertion that a callback has an environment into an error.

    Raises:
        UnknownTaskError: A callback asked for the model's environment, and there is none.
    """
    try:
        yield
    except AssertionError as error:
        if "get_env()" not in str(error) or model.get_env() is not None:
            raise
        raise UnknownTaskError(
            "a callback needs the model's environment, and neither the task nor the dataset names "
            "one: pass env= to DecisionMamba or call model.set_env; instead of ProgressBarCallback "
            "fit(progress_bar=True) needs none",
            setting="env",
        ) from error
