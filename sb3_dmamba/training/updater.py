"""One optimiser step: batch, loss, gradients, AdamW, with its seeds and learning rate.

Read :meth:`Updater.update` first: it prepares a step, and :meth:`Updater.take_step` takes it.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics, Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import ConfigError, ModelFileError
from sb3_dmamba.machine import tf32_products
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.model import ActionHead
from sb3_dmamba.training.batches import Feed, ResidentFeed, make_feed
from sb3_dmamba.training.carried_state import PREFIX, CarriedState, warm_up
from sb3_dmamba.training.cuda_graph import UpdateGraphs

WEIGHT_STREAM, DROPOUT_STREAM = 0, 1  # independent random numbers from one seed
TRAINED = "trained."  # prefix of the raw weights in a model file, beside the average of them


@dataclass(frozen=True)
class UpdateMetrics:
    """Measurements of one update; the tensors stay on the device until they are read."""

    loss: Tensor
    grad_norm: Tensor
    learning_rate: float


class ParallelLoss(Protocol):
    """How an update is shared by several processes; see :mod:`sb3_dmamba.training.distributed`."""

    @property
    def streams(self) -> tuple[int, ...]:
        """Entropy that gives this process dropout of its own."""

    def compute_loss(self, batch: WindowBatch) -> Tensor:
        """Return the loss of the whole batch, of which ``batch`` holds this process's rows."""

    def collect_carried(self) -> dict[str, Tensor]:
        """Return the carried state of the whole batch."""


class Updater:
    """Optimiser steps; the n-th one is a function of the weights, the seed and n alone.

    ``policy`` acts, and ``trained`` is what the optimiser changes. They are one object unless
    ``ema_decay`` is above 0: the weights of ``policy`` are then the moving average of those of
    ``trained``. Everything but training reads ``policy``.
    """

    def __init__(self, policy: DecisionMambaPolicy, config: DecisionMambaConfig, seed: int) -> None:
        self.policy = policy
        self.trained = policy
        if config.ema_decay:  # the copy shares the buffers: a batch norm's move with training
            self.trained = copy.deepcopy(policy, {id(each): each for each in policy.buffers()})
        self.config = config
        self.schedule = config  # fit sets the run's own
        self.lr_schedule: Callable[[float], float] | None = None  # in place of the config's
        self.seed = seed
        self.optimizer = make_optimizer(self.trained, config)
        for each in (policy, self.trained):
            each.optimizer = self.optimizer  # where Stable-Baselines3 looks for it
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.averages: list[Tensor] = []
        """Parameters of ``policy`` in the order of ``parameters``; none without averaging."""
        if config.ema_decay:
            self.averages = [p for group in split_by_decay(policy) for p in group]
        self.has_trained = True
        """Whether the raw weights are known; a file without the optimiser has the average alone."""
        self._ema_rate: float | Tensor = 0.0  # one minus the decay of this update
        self.carried = CarriedState()
        self.parallel: ParallelLoss | None = None  # set while several processes train
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
        """Build a policy with initial weights from a seed, and its updater."""
        with local_seed(device, seed, WEIGHT_STREAM):
            policy = DecisionMambaPolicy(
                observation_space, action_space, config, statistics, **(policy_kwargs or {})
            )
        return cls(policy.to(device), config, seed)

    def update(
        self, sampler: WindowSampler, n_done: int, schedule_step: int, n_updates: int
    ) -> UpdateMetrics:
        """Take one optimiser step on the next batch."""
        if self.lr_schedule is None:
            learning_rate = compute_learning_rate(self.schedule, schedule_step, n_updates)
        else:
            learning_rate = float(self.lr_schedule(1.0 - schedule_step / n_updates))
        graphs = self._graphs if self.parallel is None else None
        place = None if graphs is None else graphs.learning_rate
        set_learning_rate(self.optimizer, learning_rate, place)
        self._ema_rate = 1.0 - min(self.config.ema_decay, (1 + n_done) / (10 + n_done))
        if graphs is not None:
            self._ema_rate = graphs.ema_rate.fill_(self._ema_rate)
        self.has_trained = True
        staged = self._feed_of(sampler).stage(n_done)
        if not self.trained.training:
            self.trained.set_training_mode(True)
        if graphs is not None:
            results = graphs.run(staged, n_done)
        else:
            with self.seed_locally(n_done):
                results = self.take_step(staged.batch())
        # Mixers cache weights for acting until torch's version counter changes, which neither a
        # fused optimiser nor a graph increments.
        torch.autograd.graph.increment_version([*self.parameters, *self.averages])
        loss, grad_norm = results.unbind()
        return UpdateMetrics(loss, grad_norm, learning_rate)

    def take_step(self, batch: WindowBatch) -> Tensor:
        """Take one optimiser step on a batch, without synchronising host and device."""
        device = self.trained.device.type
        compute = self.compute_loss if self.parallel is None else self.parallel.compute_loss
        self.optimizer.zero_grad(set_to_none=True)
        with tf32_products(self.config.precision):
            with torch.autocast(
                device,
                torch.bfloat16,
                enabled=self.config.precision == "bf16",
                cache_enabled=device != "cuda",  # a graph would keep the cast weights of one update
            ):
                loss = compute(batch)
            loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self._average()
        self.carried.settle()
        return torch.stack([loss.detach(), grad_norm.detach()])

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages towards the raw weights.

        Source: Polyak and Juditsky 1992; Block et al. 2023 (arXiv:2310.11428) on why it helps a
        policy in closed loop.
        """
        if not self.averages:
            return
        if isinstance(self._ema_rate, float):
            torch._foreach_lerp_(self.averages, self.parameters, self._ema_rate)
            return
        # A graph reads the share from a tensor, for which lerp is a kernel for each parameter.
        moves = torch._foreach_sub(self.parameters, self.averages)
        torch._foreach_mul_(moves, self._ema_rate)
        torch._foreach_add_(self.averages, moves)

    def compute_loss(self, batch: WindowBatch) -> Tensor:
        """Return the loss of a batch on the policy's device, and carry the state on if asked."""
        if self.config.carry_state:
            return compute_carried_loss(self.trained, batch, self.carried)
        return compute_loss(self.trained, batch)

    def seed_locally(self, n_done: int) -> AbstractContextManager[None]:
        """Return a context with the random numbers of one update."""
        streams = () if self.parallel is None else self.parallel.streams
        return local_seed(self.policy.device, self.seed, n_done, DROPOUT_STREAM, *streams)

    @functools.cached_property
    def _graphs(self) -> UpdateGraphs | None:
        return UpdateGraphs.create(
            self.trained,
            self.config,
            self.carried,
            self.averages,
            self.take_step,
            self.seed_locally,
        )

    def _feed_of(self, sampler: WindowSampler) -> Feed:
        """Return the batch loader of a sampler, which is kept for the next update."""
        feed, resident = self._feed, None
        if feed is not None and feed.sampler is sampler:
            return feed
        was_resident = isinstance(feed, ResidentFeed)
        if isinstance(feed, ResidentFeed) and feed.windows.serve(sampler):
            resident = feed.windows
        self._feed = feed = None  # frees its memory before the next one allocates as much
        self._feed = feed = make_feed(sampler, self.config, self.policy.device, resident)
        graphs: UpdateGraphs | None = vars(self).get("_graphs")
        stayed = isinstance(feed, ResidentFeed) and feed.windows is resident
        if graphs is not None and was_resident and not stayed:
            graphs.clear()  # they read the old windows
        return feed

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without graphs and loader, which hold addresses and threads."""
        state = {name: value for name, value in vars(self).items() if name != "_graphs"}
        return {**state, "_feed": None}

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step counts, the carried state and, beside their
        average, the raw weights, by name.
        """
        parallel = self.parallel
        carried = self.carried.state() if parallel is None else parallel.collect_carried()
        trained = self.trained.named_parameters() if self.averages and self.has_trained else ()
        raw = {f"{TRAINED}{name}": parameter.detach() for name, parameter in trained}
        return {**optimizer_to_tensors(self.optimizer), **carried, **raw}

    def choose(
        self, weights: Literal["ema", "last"] | None
    ) -> tuple[DecisionMambaPolicy, Literal["ema", "last"]]:
        """Return the policy with the averaged or the raw weights, and their name.

        Args:
            weights: ``"ema"``, ``"last"``, or None for those that act.

        Raises:
            ConfigError: The model does not have them.
        """
        acting: Literal["ema", "last"] = "ema" if self.averages else "last"
        choices = ("ema", "last") if self.averages and self.has_trained else (acting,)
        if weights is not None and weights not in choices:
            fixes = {
                ("ema", "last"): "choose one of them",
                ("ema",): "load a file that was saved with its optimiser for the others",
                ("last",): "train with ema_decay above 0 for averaged ones",
            }
            known = " and ".join(map(repr, choices))
            message = f"weights={weights!r}: this model has {known}; {fixes[choices]}"
            raise ConfigError(message, setting="weights", value=weights, choices=choices)
        return (self.trained if weights == "last" else self.policy), weights or acting

    def load_weights(self, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> None:
        """Load the policy's weights, and the raw ones where they are known.

        Training continues from the raw weights, without them from the policy's. A model without
        averaging takes over the raw weights alone.

        Args:
            weights: State dictionary of the policy.
            raw: Parameters of the policy in training, by name; may be empty.
        """
        self.policy.load_state_dict(weights)
        self.trained.load_state_dict({**weights, **raw})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`state` but for raw weights; an empty one resets the carried
        state alone.

        Raises ModelFileError: the tensors belong to another model; nothing has changed then.
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


def compute_loss(policy: DecisionMambaPolicy, batch: WindowBatch) -> Tensor:
    """Return the mean loss over the real steps of a batch; padding has no influence."""
    model, inputs = policy.model, batch.inputs()
    if batch.before is None:
        predictions = model(*inputs)
    else:
        predictions, _ = model.resume(*inputs, warm_up(model, batch.before))
    return compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)


def compute_carried_loss(
    policy: DecisionMambaPolicy, batch: WindowBatch, carried: CarriedState
) -> Tensor:
    """Return :func:`compute_loss` of windows that start from a carried state, and carry it on."""
    model = policy.model
    predictions, layers = model.resume(*batch.inputs(), carried.layers_for(model, batch))
    carried.keep(layers, batch)
    return compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)


def compute_mean_loss(
    head: ActionHead, predictions: Tensor, actions: Tensor, padding_mask: Tensor
) -> Tensor:
    """Return the mean loss of predictions over the real steps; 0 where there is none.

    Shapes: ``padding_mask`` (B, K).
    """
    # Masked before and after the loss: NaN in the padding must reach neither the sum nor, through
    # the loss's derivative, the gradients.
    predictions = torch.where(padding_mask.unsqueeze(-1), predictions, 0.0)
    losses = head.losses(predictions, actions)  # (B, K)
    return torch.where(padding_mask, losses, 0.0).sum() / padding_mask.sum().clamp_min(1)


_PASSES = 20  # through the data, for n_updates=None
_FEWEST_UPDATES, _MOST_UPDATES = 2_000, 100_000
_MOST_EPISODES = 0.5  # that end at a time limit, for time_encoding=None


def resolve_config(config: DecisionMambaConfig, trajectories: Trajectories) -> DecisionMambaConfig:
    """Return a config in which the settings that a dataset decides have its values."""
    found: dict[str, Any] = {"channel_mixing": config.resolved_channel_mixing}
    if config.return_scale is None:
        scale = float(np.std(trajectories.returns_to_go, dtype=np.float64))
        found["return_scale"] = float(f"{scale:.4g}") if scale > 0.0 else 1.0
    if config.time_encoding is None and config.conditioning == "decoupled":
        # With a time limit, what can still be earned depends on the time that is left; without
        # one, time tells a model where the data's weaker agents failed.
        at_limit = np.mean(np.asarray(trajectories.truncated)) > _MOST_EPISODES
        found["time_encoding"] = "condition" if at_limit else "none"
    if config.max_timestep is None:
        found["max_timestep"] = max(1, int(trajectories.lengths.max(initial=1)))
    if config.n_updates is None:
        n_seen = config.batch_size * config.context_length  # steps, in an update
        wanted = math.ceil(_PASSES * trajectories.n_steps / n_seen)
        found["n_updates"] = min(max(wanted, _FEWEST_UPDATES), _MOST_UPDATES)
    return config.replace(**found)


def draw_seed() -> int:
    """Draw a seed from the operating system, for runs without one."""
    return int(np.random.SeedSequence().generate_state(1)[0])


@contextmanager
def local_seed(device: torch.device, *entropy: int) -> Iterator[None]:
    """Seed torch within the block, and restore its global generators afterwards."""
    devices = [device] if device.type == "cuda" else []
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def plan_schedule(config: DecisionMambaConfig, n_updates: int) -> dict[str, int | None]:
    """Return the warm-up and decay of a run, which it keeps when a later ``fit`` prolongs it."""
    warmup = _count_warmup(config, n_updates)
    return {"warmup_updates": warmup, "decay_updates": config.decay_updates}


def _count_warmup(config: DecisionMambaConfig, n_updates: int) -> int:
    return n_updates // 10 if config.warmup_updates is None else config.warmup_updates


def compute_learning_rate(config: DecisionMambaConfig, update: int, n_updates: int) -> float:
    """Return the learning rate of one update.

    Source: Chen et al. 2021 (arXiv:2106.01345), its Gym (warm-up) and Atari (cosine) code.
    """
    warmup = _count_warmup(config, n_updates)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    end = n_updates if config.decay_updates is None else config.decay_updates
    progress = min(1.0, (update - warmup) / max(1, end - warmup))
    if config.lr_schedule == "linear":
        return config.learning_rate * (1.0 - progress * (1.0 - config.final_lr_fraction))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    fraction = config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine
    return config.learning_rate * fraction


def set_learning_rate(
    optimizer: torch.optim.Optimizer, value: float, place: Tensor | None = None
) -> None:
    """Set the learning rate of every parameter group."""
    if place is not None:
        place.fill_(value)
    for group in optimizer.param_groups:
        group["lr"] = value if place is None else place


def make_optimizer(model: nn.Module, config: DecisionMambaConfig) -> torch.optim.AdamW:
    """Build AdamW over the model's parameters in two groups, with and without weight decay."""
    decayed, free = split_by_decay(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    rate, betas = config.learning_rate, config.adam_betas
    # Fused is one pass over all parameters; several times faster on a CPU.
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Separate the weights of matrix products and image convolutions from all other parameters.

    Biases, norms, embedding tables, and Mamba's ``A_log``, ``D`` and short convolution are not
    decayed.

    Source: mamba_ssm excludes ``A_log`` and ``D`` from decay; the rest is minGPT's rule.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_product = name == "weight" and isinstance(module, (nn.Linear, nn.Conv2d))
            (decayed if is_product else free).append(parameter)
    return decayed, free


_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter, in AdamW


def optimizer_to_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and step counts by name."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def optimizer_from_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the result of :func:`optimizer_to_tensors`.

    Raises ModelFileError: the tensors belong to another model; nothing has changed then.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(parameters) and name in _MOMENTS):
            raise ModelFileError(
                f"the optimiser state has an entry {key!r} for no parameter", setting=key
            )
        shape = torch.Size() if name == "step" else parameters[int(number)].shape
        if tensor.shape != shape or not tensor.is_floating_point():
            message = (
                f"the optimiser state {key!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"and its parameter's {tuple(shape)}"
            )
            raise ModelFileError(message, setting=key, value=tuple(tensor.shape))
        state.setdefault(int(number), {})[name] = tensor
    for index, entries in state.items():
        if missing := sorted(_MOMENTS - entries.keys()):
            message = f"the optimiser state of parameter {index} lacks {', '.join(missing)}"
            raise ModelFileError(message, setting=f"{index}.{missing[0]}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
