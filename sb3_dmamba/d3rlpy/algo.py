"""Decision Mamba as d3rlpy algorithms: configs, algorithms, implementation, stateful wrapper."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from d3rlpy.algos.transformer.action_samplers import (
    IdentityTransformerActionSampler,
    SoftmaxTransformerActionSampler,
    TransformerActionSampler,
)
from d3rlpy.algos.transformer.base import (
    StatefulTransformerWrapper,
    TransformerAlgoBase,
    TransformerAlgoImplBase,
)
from d3rlpy.base import register_learnable
from d3rlpy.constants import IMPL_NOT_INITIALIZED_ERROR, ActionSpace, PositionEncodingType
from d3rlpy.dataset import ReplayBuffer, ReplayBufferBase, is_tuple_shape
from d3rlpy.models import EncoderFactory, make_encoder_field
from d3rlpy.optimizers import OptimizerFactory, OptimizerWrapper, make_optimizer_field
from d3rlpy.torch_utility import (
    CudaGraphWrapper,
    Modules,
    convert_to_torch,
    convert_to_torch_recursively,
    unwrap_ddp_model,
    wrap_model_by_ddp,
)
from torch import Tensor, nn

from sb3_dmamba.checks import check_number
from sb3_dmamba.d3rlpy.dataset import WindowReplayBuffer
from sb3_dmamba.d3rlpy.files import export_policy, save_learnable
from sb3_dmamba.d3rlpy.network import (
    SequenceConfig,
    make_action_space,
    make_model,
    pack_observations,
    predict_newest,
    to_windows,
)
from sb3_dmamba.envs.return_to_go import subtract_rewards
from sb3_dmamba.errors import ConfigError, DatasetError, DivergenceError, SpaceError
from sb3_dmamba.export.graph import make_traceable
from sb3_dmamba.machine import check_precision, choose_precision, tf32_products
from sb3_dmamba.networks import SequenceModel
from sb3_dmamba.networks.memory import StreamMemory
from sb3_dmamba.training.updater import DROPOUT_STREAM, WEIGHT_STREAM, compute_mean_loss, local_seed

_FINAL_FRACTION = 0.1  # of the learning rate, once all tokens have been seen


@dataclasses.dataclass()
class DecisionMambaConfig(SequenceConfig):
    """Config of Decision Mamba for continuous actions.

    The fields up to ``position_encoding_type`` are those of d3rlpy's ``DecisionTransformerConfig``,
    with its defaults, so this takes its place in a script. ``gamma`` has no effect in either.

    Args:
        observation_scaler: Observation preprocessor.
        action_scaler: Action preprocessor; without one actions must lie in [-1, 1].
        reward_scaler: Preprocessor of rewards and returns-to-go.
        compile_graph: Whether to compile updates and run them as a CUDA graph; CUDA only.
        context_size: Steps in a window.
        max_timestep: Size of the timestep table; later steps share its last entry.
        batch_size: Windows in an update.
        learning_rate: Learning rate.
        encoder_factory: Makes the observation encoder; its output size is the model's width.
        optim_factory: Makes the optimiser.
        num_heads: Heads of ``mixer="attention"``; no effect with the others.
        num_layers: Number of blocks.
        attn_dropout: Dropout of attention weights with ``mixer="attention"``.
        resid_dropout: Dropout of the outputs of a block's mixer and MLP.
        embed_dropout: Dropout of embedded tokens.
        activation_type: Activation of the MLP; no effect with ``channel_mixing=False``.
        position_encoding_type: ``SIMPLE`` adds an embedding of each step's timestep; ``GLOBAL`` of
            the timestep of the window's first step, and of each token's place in the window.
        mixer: Token mixer. It, ``d_state``, ``d_conv``, ``expand``, ``dt_rank``, ``filter_length``,
            ``channel_mixing``, ``init``, ``precision``, ``backend`` and ``conditioning`` are as in
            :class:`sb3_dmamba.DecisionMambaConfig`; encoders keep their factory's weights.
        embedding: ``"norm"`` applies LayerNorm to the embedded tokens, ``"tanh"`` a tanh; None is
            as in d3rlpy, ``"norm"`` for continuous actions.
        time_encoding: ``"timestep"``, ``"global"``, or ``"none"`` for a mixer that is sensitive to
            the order; None follows ``position_encoding_type``.
        memory: Memory of ``as_stateful_wrapper``: ``"window"`` as in d3rlpy, or ``"stream"`` at a
            constant cost a step.
        seed: Seed of the weights and of dropout, with the effect it has in
            ``sb3_dmamba.DecisionMamba``. None draws from torch's global generator, which
            ``d3rlpy.seed`` sets; dropout in compiled updates always does.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: d3rlpy 2.8.1, ``algos/transformer/decision_transformer.py`` (fields and defaults).
    """

    is_discrete: ClassVar[bool] = False

    batch_size: int = 64
    learning_rate: float = 1e-4
    encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009  # a dataclasses.field
    optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009
    num_heads: int = 1
    num_layers: int = 3
    attn_dropout: float = 0.1
    resid_dropout: float = 0.1
    embed_dropout: float = 0.1
    activation_type: str = "relu"
    position_encoding_type: PositionEncodingType = PositionEncodingType.SIMPLE

    def create(self, device: Any = False, enable_ddp: bool = False) -> DecisionMamba:
        """Return the algorithm.

        Args:
            device: ``False`` is the CPU, ``True`` the first GPU, a number that GPU; or the name of
                a torch device.
            enable_ddp: Whether to train data-parallel, in an initialised process group.
        """
        return DecisionMamba(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the config's name in saved files."""
        return "decision_mamba"


@dataclasses.dataclass()
class DiscreteDecisionMambaConfig(SequenceConfig):
    """Config of Decision Mamba for discrete actions.

    The fields of :class:`DecisionMambaConfig`, those of d3rlpy with the defaults of
    ``DiscreteDecisionTransformerConfig``, and three more.

    Args:
        embed_activation_type: Activation on each embedding; no effect where ``embedding`` is given.
        warmup_tokens: Environment steps over which the learning rate rises from zero.
        final_tokens: Environment steps after which it has fallen, along a cosine, to a tenth.
            Neither has an effect where ``optim_factory`` has a scheduler of its own.
        embedding: As in :class:`DecisionMambaConfig`; None is ``embed_activation_type``.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: d3rlpy 2.8.1, ``algos/transformer/decision_transformer.py`` (fields and defaults).
    """

    is_discrete: ClassVar[bool] = True

    batch_size: int = 128
    learning_rate: float = 6e-4
    encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009  # a dataclasses.field
    optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009
    num_heads: int = 8
    num_layers: int = 6
    attn_dropout: float = 0.1
    resid_dropout: float = 0.1
    embed_dropout: float = 0.1
    activation_type: str = "gelu"
    embed_activation_type: str = "tanh"
    position_encoding_type: PositionEncodingType = PositionEncodingType.GLOBAL
    warmup_tokens: int = 10240
    final_tokens: int = 30000000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup_tokens", "final_tokens"):
            steps = check_number(name, getattr(self, name), 0.0, words="of steps, at least 0")
            setattr(self, name, int(steps) if steps.is_integer() else steps)

    def create(self, device: Any = False, enable_ddp: bool = False) -> DiscreteDecisionMamba:
        """Return the algorithm; see :meth:`DecisionMambaConfig.create`."""
        return DiscreteDecisionMamba(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the config's name in saved files."""
        return "discrete_decision_mamba"


class SequenceAlgoBase(TransformerAlgoBase):
    """Base class of our two algorithms."""

    _config: Any  # d3rlpy's classes have no type of it

    def inner_create_impl(self, observation_shape: Sequence[Any], action_size: int) -> None:
        """Build network and optimiser; d3rlpy calls it when shapes are known."""
        config, device = self._config, torch.device(self._device)
        if config.precision == "auto":  # a file has the one in use: training goes on in it
            precision = choose_precision("auto", device)
            self._config = config = dataclasses.replace(config, precision=precision)
        seeded: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if config.seed is not None:
            seeded = local_seed(torch.device("cpu"), config.seed, WEIGHT_STREAM)
        with seeded:
            model = make_model(config, observation_shape, action_size)
        if self.compiled and config.backend == "auto":
            make_traceable(model)  # compiled code is faster without the reference's loops
        model = model.to(self._device)
        if self._enable_ddp:
            model = wrap_model_by_ddp(model)
        optim = config.optim_factory.create(
            model.named_modules(), lr=config.learning_rate, compiled=self.compiled
        )
        self._impl = DecisionMambaImpl(
            observation_shape,
            action_size,
            DecisionMambaModules(model, optim, TrainingProgress()),
            is_discrete=config.is_discrete,
            precision=config.precision,
            seed=config.seed,
            schedule=self._make_schedule(),
            compiled=self.compiled,
            device=self._device,
        )

    def _make_schedule(self) -> TokenSchedule | None:
        return None

    def fit(self, dataset: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
        """Train with d3rlpy's loop; arguments as d3rlpy's ``fit``.

        Of what ``as_replay_buffer`` returned, update n takes batch n: a run that was saved and
        loaded continues exactly. d3rlpy's own buffers draw from NumPy's global generator.

        Raises:
            DatasetError: The dataset is not a d3rlpy replay buffer.
            DivergenceError: The loss is not finite.
            ConfigError: The device does not have the precision.
        """
        check_precision(self._config.precision, torch.device(self._device))
        if not isinstance(dataset, ReplayBufferBase):
            message = (
                f"d3rlpy's fit takes a replay buffer, and this is a {type(dataset).__name__}: give "
                f"it sb3_dmamba.d3rlpy.as_replay_buffer(dataset), or "
                f"load_trajectories(dataset).to_d3rlpy()"
            )
            raise DatasetError(message, setting="dataset", value=dataset)
        if isinstance(dataset, WindowReplayBuffer):
            dataset.follow(0 if self._impl is None else int(self._impl.progress.n_updates))
        super().fit(dataset, *args, **kwargs)

    def as_stateful_wrapper(
        self,
        target_return: float,
        action_sampler: TransformerActionSampler | None = None,
        memory: str | None = None,
    ) -> StatefulTransformerWrapper | StreamTransformerWrapper:
        """Return an actor for one environment, with ``predict(x, reward)`` and ``reset()``.

        Args:
            target_return: Return to ask for at the start of each episode.
            action_sampler: Turns a prediction into an action; None takes continuous predictions
                as they are and draws discrete actions.
            memory: ``"window"`` is d3rlpy's own wrapper, which encodes the last ``context_size``
                steps at each step; ``"stream"`` carries the recurrent state over the episode, at a
                constant cost a step. None is the config's.

        Returns:
            d3rlpy's ``StatefulTransformerWrapper``, or our :class:`StreamTransformerWrapper`.

        Raises:
            ConfigError: An unknown memory, one that the position encoding rules out, or a target
                that is not finite.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        if not math.isfinite(target_return):
            message = f"target_return={target_return!r}: give a finite number"
            raise ConfigError(message, setting="target_return", value=target_return)
        if memory is None:
            memory = self._config.memory
        dataclasses.replace(self._config, memory=memory)  # raises where it cannot work
        if action_sampler is None:
            action_sampler = IdentityTransformerActionSampler()
            if self._config.is_discrete:
                action_sampler = SoftmaxTransformerActionSampler()
        if memory == "window":
            return StatefulTransformerWrapper(self, target_return, action_sampler)
        return StreamTransformerWrapper(self, target_return, action_sampler)

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Write config and weights, for ``d3rlpy.load_learnable`` and d3rlpy's command line.

        The file is d3rlpy's, except that opening it imports this package, so that d3rlpy knows the
        algorithm. Training continues from it exactly.

        Args:
            fname: File to write, atomically.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        save_learnable(self, fname)

    def save_policy(self, fname: str | os.PathLike[str]) -> None:
        """Export the greedy policy over one window, as TorchScript (.pt) or ONNX (.onnx).

        Inputs, each of ``context_size`` steps without a batch axis, padded on the left with zeros:
        ``observation_0`` (and ``_1``, ... of a tuple), ``action`` (A,) or (1,), ``return_to_go``
        (1,), ``timestep``, from 1, 0 where there is padding. Output: the action of the newest step,
        (A,), or its number. Scalers are inside: everything is in the environment's units.

        Args:
            fname: File to write, atomically.

        Raises:
            ConfigError: The suffix is another.
            MissingDependencyError: ONNX was asked for, and onnx is not installed.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        export_policy(self, fname)


class DecisionMamba(SequenceAlgoBase):
    """Decision Mamba for continuous actions; made by :class:`DecisionMambaConfig`."""

    def get_action_type(self) -> ActionSpace:
        """Return the kind of actions."""
        return ActionSpace.CONTINUOUS


class DiscreteDecisionMamba(SequenceAlgoBase):
    """Decision Mamba for discrete actions; made by :class:`DiscreteDecisionMambaConfig`."""

    def get_action_type(self) -> ActionSpace:
        """Return the kind of actions."""
        return ActionSpace.DISCRETE

    def _make_schedule(self) -> TokenSchedule | None:
        config = self._config
        if config.optim_factory.lr_scheduler_factory is not None:
            return None
        return TokenSchedule(config.learning_rate, config.warmup_tokens, config.final_tokens)


register_learnable(DecisionMambaConfig)
register_learnable(DiscreteDecisionMambaConfig)


class TrainingProgress(nn.Module):
    """Counts of updates and environment steps; a module, so that d3rlpy saves it with the weights.

    Attributes:
        n_updates: Updates taken, a scalar.
        n_tokens: Real steps seen in them, a scalar; of all processes together under ``enable_ddp``.
    """

    n_updates: Tensor
    n_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("n_tokens", torch.zeros((), dtype=torch.int64))


@dataclasses.dataclass(frozen=True)
class DecisionMambaModules(Modules):
    """What d3rlpy saves, loads, and sets to training or evaluation."""

    transformer: nn.Module
    optim: OptimizerWrapper
    progress: TrainingProgress

    def get_torch_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose weights and gradients d3rlpy logs: the network."""
        return {"transformer": self.transformer}


@dataclasses.dataclass(frozen=True)
class TokenSchedule:
    """A learning rate that follows the number of steps seen, by all processes together.

    Source: Chen et al. 2021 (arXiv:2106.01345), its Atari code, where the cosine rises again
        after ``final_tokens``.
    """

    learning_rate: float
    warmup_tokens: int
    final_tokens: int

    def compute(self, n_tokens: int) -> float:
        """Return the learning rate of an update; ``n_tokens`` includes the update's own."""
        if n_tokens < self.warmup_tokens:
            return self.learning_rate * n_tokens / max(1, self.warmup_tokens)
        left = max(1, self.final_tokens - self.warmup_tokens)
        progress = min(1.0, (n_tokens - self.warmup_tokens) / left)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.learning_rate * max(_FINAL_FRACTION, cosine)


class DecisionMambaImpl(TransformerAlgoImplBase):
    """Updates and predictions of both algorithms."""

    _modules: DecisionMambaModules

    def __init__(
        self,
        observation_shape: Any,
        action_size: int,
        modules: DecisionMambaModules,
        *,
        is_discrete: bool,
        precision: str,
        seed: int | None,
        schedule: TokenSchedule | None,
        compiled: bool,
        device: str,
    ) -> None:
        super().__init__(observation_shape, action_size, modules, device)
        self._is_discrete = is_discrete
        self._precision = precision
        self._seed = None if compiled else seed
        self._schedule = schedule
        self._compute_grad = CudaGraphWrapper(self.compute_grad) if compiled else self.compute_grad

    @property
    def model(self) -> SequenceModel:
        """The network, out of ``DistributedDataParallel``."""
        model: SequenceModel = unwrap_ddp_model(self._modules.transformer)
        return model

    @property
    def progress(self) -> TrainingProgress:
        """Counts of updates and environment steps."""
        return self._modules.progress

    def inner_predict(self, inpt: Any) -> Tensor:
        """Predict at the newest step of one window: an action (A,), or logits (A,)."""
        return predict_newest(self.model, inpt, is_discrete=self._is_discrete)

    def compute_loss(self, batch: Any) -> Tensor:
        """Return the mean loss over the real steps of d3rlpy's ``TorchTrajectoryMiniBatch``."""
        on_cpu = self._device.startswith("cpu")
        windows = to_windows(batch, is_discrete=self._is_discrete, skip_if_full=on_cpu)
        predictions = self._modules.transformer(*windows.inputs())
        return compute_mean_loss(
            self.model.head, predictions, windows.actions, windows.padding_mask
        )

    def compute_grad(self, batch: Any) -> dict[str, Tensor]:
        """Fill the gradients; return the loss under its name."""
        self._modules.optim.zero_grad()
        with tf32_products(self._precision):
            with torch.autocast(
                torch.device(self._device).type, torch.bfloat16, enabled=self._precision == "bf16"
            ):
                loss = self.compute_loss(batch)
            loss.backward()
        return {"loss": loss}

    def inner_update(self, batch: Any, grad_step: int) -> dict[str, float]:
        """Take one optimiser step; none, with a loss of 0, where the masks leave no step.

        Raises DivergenceError: the loss is not finite; the weights are as they were.
        """
        metrics: dict[str, float] = {}
        progress = self.progress
        n_tokens = int(progress.n_tokens) + self._count_tokens(batch)
        if self._schedule is not None:
            metrics["learning_rate"] = self._schedule.compute(n_tokens)
            for group in self._modules.optim.optim.param_groups:
                group["lr"] = metrics["learning_rate"]
        if n_tokens == int(progress.n_tokens):
            return {"loss": 0.0, **metrics}
        with self._seeded_dropout():
            loss = float(self._compute_grad(batch)["loss"].detach())
        if not math.isfinite(loss):
            raise DivergenceError(
                f"update {int(progress.n_updates) + 1} had loss {loss}: lower learning_rate, clip "
                f"gradients with optim_factory=AdamWFactory(clip_grad_norm=0.25), scale rewards "
                f"with reward_scaler=MultiplyRewardScaler(0.001), or look for non-finite numbers "
                f"in the dataset",
                value=loss,
            )
        self._modules.optim.step()
        progress.n_tokens.fill_(n_tokens)
        progress.n_updates += 1
        return {"loss": loss, **metrics}

    @property
    def _is_parallel(self) -> bool:
        return self.model is not self._modules.transformer

    def _count_tokens(self, batch: Any) -> int:
        """Count the real steps of an update, those of all processes together."""
        count = batch.masks.sum().to(torch.int64)
        if self._is_parallel:  # or else each process would follow a schedule of its own
            torch.distributed.all_reduce(count)
        return int(count)

    def _seeded_dropout(self) -> contextlib.AbstractContextManager[None]:
        if self._seed is None:
            return contextlib.nullcontext()
        entropy = [self._seed, int(self.progress.n_updates), DROPOUT_STREAM]
        if self._is_parallel and torch.distributed.get_rank() > 0:
            entropy.append(torch.distributed.get_rank())  # each process draws its own dropout
        return local_seed(torch.device(self._device), *entropy)

    def load_model(self, f: Any) -> None:
        """Load what :meth:`save_model` wrote, also into a network that is data-parallel."""
        # d3rlpy unwraps DistributedDataParallel when it saves a network, not when it loads one.
        modules = dataclasses.replace(self._modules, transformer=self.model)
        modules.create_checkpointer(self._device).load(f)


class StreamTransformerWrapper:
    """An actor for one environment that carries the recurrent state over the episode.

    Takes the place of d3rlpy's ``StatefulTransformerWrapper``: the same ``predict`` and ``reset``,
    at a cost that does not grow with ``context_size``, and with a memory of the whole episode.
    For the first ``context_size`` steps of an episode Mamba predicts what the window would.

    Args:
        algo: One of our algorithms, built.
        target_return: Return to ask for at the start of each episode.
        action_sampler: Turns a prediction into an action.
    """

    def __init__(
        self,
        algo: TransformerAlgoBase,
        target_return: float,
        action_sampler: TransformerActionSampler,
    ) -> None:
        assert algo.impl is not None
        self._algo = algo
        self._target_return = target_return
        self._action_sampler = action_sampler
        self._is_discrete = algo.get_action_type() == ActionSpace.DISCRETE
        action_space = make_action_space(algo.impl.action_size, self._is_discrete)
        self._memory = StreamMemory(algo.impl.model, action_space)
        self.reset()

    @property
    def algo(self) -> TransformerAlgoBase:
        """The algorithm that acts."""
        return self._algo

    def reset(self) -> None:
        """Begin an episode: clear the memory, and reset the return-to-go to the target."""
        self._state = self._memory.initial_state(1)
        self._return_rest = self._target_return

    @torch.no_grad()
    def predict(self, x: Any, reward: float) -> Any:
        """Choose the next action.

        Args:
            x: One observation (*obs), or the arrays of a tuple.
            reward: The reward of the last action; 0 at an episode's first step.

        Returns:
            The action sampler's action: (A,) float32, or an int.

        Raises:
            SpaceError: The observation has another shape; the episode can go on.
            ConditioningError: ``reward`` is not finite.
        """
        self._check_shape(x)
        return_rest = float(subtract_rewards(self._return_rest, reward))
        self._algo.impl.modules.set_eval()
        prediction, remembered = self._memory.encode(
            self._prepare(x), self._scale(return_rest), self._state
        )
        self._return_rest = return_rest
        output = prediction[0]
        scaler = self._algo.action_scaler
        if scaler is not None:
            output = scaler.reverse_transform(output)
        action = self._action_sampler(output.cpu().numpy())
        self._state = self._state.advance(self._stored(action), remembered)
        return action

    def _check_shape(self, x: Any) -> None:
        expected = self._algo.impl.observation_shape
        if is_tuple_shape(expected):
            return
        if isinstance(x, tuple) or np.size(x) != np.prod(expected, dtype=int):
            found = "a tuple" if isinstance(x, tuple) else f"of shape {np.shape(x)}"
            raise SpaceError(
                f"the observation is {found}, and shape {tuple(expected)} was expected: "
                f"predict(observation, reward), with what env.step returned first",
                setting="observation",
                value=np.shape(x) if found != "a tuple" else x,
            )

    def _prepare(self, x: Any) -> Tensor:
        one = [part[None] for part in x] if isinstance(x, (list, tuple)) else np.asarray(x)[None]
        observation = convert_to_torch_recursively(one, self._device)
        if self._algo.observation_scaler is not None:
            observation = self._algo.observation_scaler.transform(observation)
        if isinstance(observation, Tensor):
            return observation  # (1, *obs)
        return pack_observations([part.unsqueeze(1) for part in observation])[:, 0]  # (1, size)

    def _scale(self, return_rest: float) -> Tensor:
        returns_to_go = torch.tensor([return_rest], dtype=torch.float32, device=self._device)
        if self._algo.reward_scaler is not None:
            returns_to_go = self._algo.reward_scaler.transform(returns_to_go)
        return returns_to_go  # (1,)

    def _stored(self, action: Any) -> Tensor:
        if self._is_discrete:
            return torch.tensor([int(action)], device=self._device)
        taken: Tensor = convert_to_torch(np.asarray(action)[None], self._device)  # (1, A)
        if self._algo.action_scaler is not None:
            taken = self._algo.action_scaler.transform(taken)
        return taken

    @property
    def _device(self) -> str:
        device: str = self._algo.impl.device
        return device
