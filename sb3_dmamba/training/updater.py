"""One optimiser step: a batch of windows in, changed weights out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics, WindowBatch, WindowSampler
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.training.carrying import PREFIX, CarriedState
from sb3_dmamba.training.checkpoints import optimizer_from_tensors, optimizer_to_tensors
from sb3_dmamba.training.feeds import Feed, ResidentFeed, make_feed
from sb3_dmamba.training.graphs import UpdateGraphs
from sb3_dmamba.training.losses import compute_carried_loss, compute_loss
from sb3_dmamba.training.optimizer import make_optimizer, set_learning_rate
from sb3_dmamba.training.schedule import compute_learning_rate
from sb3_dmamba.training.seeding import DROPOUT_STREAM, WEIGHT_STREAM, local_seed

if TYPE_CHECKING:
    from sb3_dmamba.training.data_parallel import DataParallel

__all__ = ["UpdateMetrics", "Updater"]


@dataclass(frozen=True)
class UpdateMetrics:
    """What one update measured; tensors stay on the device until somebody reads them."""

    loss: Tensor
    grad_norm: Tensor
    learning_rate: float


class Updater:
    """Run updates; the n-th one is a function of the weights, the seed and n alone.

    Args:
        policy: The policy to train, on its device.
        config: Optimiser, schedule, precision.
        seed: Seed of dropout; the sampler has the same one.
    """

    def __init__(self, policy: DecisionMambaPolicy, config: DecisionMambaConfig, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.schedule = config  # that of the run, where it has another length than the config's
        self.seed = seed
        self.optimizer = make_optimizer(policy, config)
        self.carried = CarriedState()
        self.parallel: DataParallel | None = None  # while several processes train
        policy.optimizer = self.optimizer  # where Stable-Baselines3 looks for it
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._feed: Feed | None = None

    @classmethod
    def create(
        cls,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None,
        seed: int,
        device: torch.device,
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> Updater:
        """Build a policy with the weights of a seed, and what trains it.

        Raises:
            SpaceError: A space that no encoder or head fits.
        """
        with local_seed(device, seed, WEIGHT_STREAM):
            policy = DecisionMambaPolicy(
                observation_space, action_space, config, statistics, **(policy_kwargs or {})
            )
        return cls(policy.to(device), config, seed)

    def update(
        self, sampler: WindowSampler, n_done: int, schedule_step: int, n_updates: int
    ) -> UpdateMetrics:
        """Take one optimiser step.

        Args:
            sampler: Where the batch comes from.
            n_done: Updates this model has had in its life; picks the batch and the dropout.
            schedule_step: Updates of this run so far; with ``n_updates`` sets the learning rate.
            n_updates: Updates of the whole run.

        Returns:
            Loss, gradient norm before clipping, and learning rate.
        """
        learning_rate = compute_learning_rate(self.schedule, schedule_step, n_updates)
        graphs = self._graphs if self.parallel is None else None
        place = None if graphs is None else graphs.learning_rate
        set_learning_rate(self.optimizer, learning_rate, place)
        staged = self._feed_of(sampler).stage(n_done)
        if not self.policy.training:
            self.policy.set_training_mode(True)
        seed = functools.partial(self.seed_locally, n_done)
        if graphs is not None:
            results = graphs.run(staged, seed)
        else:
            with seed():
                results = self.take_step(staged.batch())
        # What is kept of weights, such as a mixer's for acting, goes by torch's count of changes,
        # which neither the fused optimiser nor a graph adds to.
        torch.autograd.graph.increment_version(self.parameters)
        loss, grad_norm = results.unbind()
        return UpdateMetrics(loss, grad_norm, learning_rate)

    def take_step(self, batch: WindowBatch) -> Tensor:
        """Take one optimiser step on a batch, without synchronising host and device.

        Args:
            batch: Windows on the policy's device.

        Returns:
            Loss, and gradient norm before clipping, (2,).
        """
        device, parallel = self.policy.device, self.parallel
        compute = self.compute_loss if parallel is None else parallel.compute_loss
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=self.config.precision == "bf16",
            # A graph's weights change between replays, and what is cast once would be of one.
            cache_enabled=device.type != "cuda",
        ):
            loss = compute(batch)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.carried.settle()
        return torch.stack([loss.detach(), grad_norm.detach()])

    def seed_locally(self, n_done: int) -> AbstractContextManager[None]:
        """Return a context in which random numbers are those of an update."""
        streams = () if self.parallel is None else self.parallel.streams
        return local_seed(self.policy.device, self.seed, n_done, DROPOUT_STREAM, *streams)

    @functools.cached_property
    def _graphs(self) -> UpdateGraphs | None:
        return UpdateGraphs.create(self)

    def _feed_of(self, sampler: WindowSampler) -> Feed:
        """Return what brings a sampler's batches to the device, and keep it for the next one."""
        feed, resident = self._feed, None
        if feed is not None and feed.sampler is sampler:
            return feed
        was_resident = isinstance(feed, ResidentFeed)
        if isinstance(feed, ResidentFeed) and feed.windows.serve(sampler):
            resident = feed.windows
        self._feed = feed = None  # frees its memory before the next one asks for as much
        self._feed = feed = make_feed(sampler, self.config, self.policy.device, resident)
        graphs: UpdateGraphs | None = vars(self).get("_graphs")
        stayed = isinstance(feed, ResidentFeed) and feed.windows is resident
        if graphs is not None and was_resident and not stayed:
            graphs.clear()  # they read the windows where they were
        return feed

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what belongs to one process and one place in memory."""
        state = {name: value for name, value in vars(self).items() if name != "_graphs"}
        return {**state, "_feed": None}

    def compute_loss(self, batch: WindowBatch) -> Tensor:
        """Return the loss of a batch on the policy's device; what is to be carried is carried."""
        if self.config.carry_state:
            return compute_carried_loss(self.policy, batch, self.carried)
        return compute_loss(self.policy, batch)

    def agree(self, keep_going: bool) -> bool:
        """Return whether to go on, which the first of several processes decides for all."""
        return keep_going if self.parallel is None else self.parallel.agree(keep_going)

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and steps, and what is carried, as named tensors."""
        parallel = self.parallel
        carried = self.carried.state() if parallel is None else parallel.collect_carried()
        return {**optimizer_to_tensors(self.optimizer), **carried}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned; an empty one starts the optimiser anew.

        Raises:
            ModelFileError: The tensors belong to another model.
        """
        carries = self.config.carry_state
        carried = {name: t for name, t in state.items() if carries and name.startswith(PREFIX)}
        moments = {name: tensor for name, tensor in state.items() if name not in carried}
        before = self.carried.state()
        self.carried.restore(self.policy.model, carried)
        if moments:
            try:
                optimizer_from_tensors(self.optimizer, moments)
            except BaseException:
                self.carried.restore(self.policy.model, before)
                raise
