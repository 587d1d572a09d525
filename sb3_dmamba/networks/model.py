"""The sequence model: token embedding, blocks and action heads, in the order of the data flow.

Of shapes, B is the batch, K the steps of a window, L its tokens, M the tokens read out, H the
width, C the size of a condition and A the size of a prediction.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import SpaceError
from sb3_dmamba.networks.encoders import ActionEncoder, make_observation_encoder
from sb3_dmamba.networks.mixers import AttentionMixer, ConvolutionMixer, MambaMixer
from sb3_dmamba.ops import add_residual, modulated_norm
from sb3_dmamba.ops._shared import DROPOUT_LEVELS

CONDITION_SIZE = 32
"""Features of a return-to-go that modulate the norms, of ``conditioning="decoupled"``."""


class TokenEmbedding(nn.Module):
    """Interleave the embedded returns-to-go, observations and actions of a window.

    With ``conditioning="decoupled"`` returns-to-go are no tokens: :meth:`condition` embeds them.

    Source: Chen et al. 2021 (arXiv:2106.01345), algorithm 1, and its Atari code for the tanh and
    the global time encoding.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None,
        observation_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.return_scale = config.resolved_return_scale
        self.max_timestep = config.max_timestep or 1000
        if observation_encoder is None:
            observation_encoder = make_observation_encoder(observation_space, config, statistics)
        self.observation_encoder = observation_encoder
        self.action_encoder = ActionEncoder(action_space, width)
        self.tokens_per_step = config.tokens_per_step
        self.is_decoupled = config.conditioning == "decoupled"
        self.is_time_in_condition = config.resolved_time_encoding == "condition"
        self.return_encoder: nn.Module = nn.Linear(1, width)
        if self.is_decoupled:
            # Bounded: a return far beyond the data's is taken for about their highest.
            n_features = 2 if self.is_time_in_condition else 1
            self.return_encoder = nn.Sequential(
                nn.Linear(n_features, width), nn.SiLU(), nn.Linear(width, CONDITION_SIZE), nn.Tanh()
            )
        self.activation = nn.Tanh() if config.embedding == "tanh" else nn.Identity()
        self.timestep_table: nn.Embedding | None = None
        if config.resolved_time_encoding in ("timestep", "global"):
            self.timestep_table = nn.Embedding(self.max_timestep, width)
        self.position_table: nn.Parameter | None = None
        if config.time_encoding == "global":
            n_positions = self.tokens_per_step * config.context_length - 1
            self.position_table = nn.Parameter(torch.zeros(n_positions, width))
        self.norm = nn.LayerNorm(width) if config.embedding == "norm" else nn.Identity()

    def forward(
        self,
        observations: Num[Tensor, "B K *obs"],
        actions: Num[Tensor, "B K *act"],
        returns_to_go: Float[Tensor, "B K"],
        timesteps: Int[Tensor, "B K"],
        keep_last_action: bool = False,
    ) -> Float[Tensor, "B L H"]:
        """Embed K steps as L = 3K - 1 tokens: R_0, s_0, a_0, R_1, ..., s_{K-1}.

        The last action is left out: no prediction depends on it. Decoupled, there are 2K - 1
        tokens: s_0, a_0, s_1, ..., s_{K-1}.
        """
        embedded = self.embed_observations(observations)
        return self.join(embedded, actions, returns_to_go, timesteps, keep_last_action)

    def join(
        self,
        embedded_observations: Float[Tensor, "B K H"],
        actions: Num[Tensor, "B K *act"],
        returns_to_go: Float[Tensor, "B K"],
        timesteps: Int[Tensor, "B K"],
        keep_last_action: bool = False,
    ) -> Float[Tensor, "B L H"]:
        """Embed steps as :meth:`forward` does, from observations embedded before."""
        parts = [embedded_observations, self.embed_actions(actions)]
        if not self.is_decoupled:
            parts.insert(0, self.embed_returns(returns_to_go))
        tokens = torch.stack(parts, dim=2)  # (B, K, 3 or 2, H)
        if self.position_table is not None:  # the Atari model adds the time of the first step
            timesteps = timesteps[:, :1]
        timed = self.add_time(tokens, timesteps.unsqueeze(2))  # (B, K or 1, 1) broadcasts
        sequence = timed.flatten(1, 2)  # (B, 3K or 2K, H)
        if not keep_last_action:
            sequence = sequence[:, :-1]
        if self.position_table is not None:
            sequence = sequence + self.position_table[: sequence.shape[1]]
        normed: Tensor = self.norm(sequence)
        return normed

    def embed_returns(self, returns_to_go: Float[Tensor, "B K"]) -> Float[Tensor, "B K H"]:
        """Embed returns-to-go, before time is added."""
        scaled_returns_to_go = (returns_to_go / self.return_scale).unsqueeze(-1)
        embedded: Tensor = self.activation(self.return_encoder(scaled_returns_to_go))
        return embedded

    def condition(
        self, returns_to_go: Float[Tensor, "B K"], timesteps: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K C"] | None:
        """Return what modulates each step's norms; None where returns-to-go are tokens."""
        if not self.is_decoupled:
            return None
        features = [returns_to_go / self.return_scale]
        if self.is_time_in_condition:
            features.append(timesteps.clamp(0, self.max_timestep - 1) / self.max_timestep)
        condition: Tensor = self.return_encoder(torch.stack(features, dim=-1))
        return condition

    def embed_observations(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Embed observations, before time is added."""
        embedded: Tensor = self.activation(self.observation_encoder(observations))
        return embedded

    def embed_actions(self, actions: Num[Tensor, "B K *act"]) -> Float[Tensor, "B K H"]:
        """Embed actions, before time is added."""
        embedded: Tensor = self.activation(self.action_encoder(actions))
        return embedded

    def add_time(
        self, tokens: Float[Tensor, "B *tokens H"], timesteps: Int[Tensor, "B *broadcastable"]
    ) -> Float[Tensor, "B *tokens H"]:
        """Add the embedding of the time step, unless ``time_encoding="none"``."""
        if self.timestep_table is None:
            return tokens
        table_index = timesteps.clamp(0, self.max_timestep - 1)
        timed: Tensor = tokens + self.timestep_table(table_index)
        return timed


_PER_DRAW = 4  # int16s in one int64 of torch's generator


class Dropout(nn.Module):
    """Zero each activation with probability ``p`` in training, and scale the others up.

    On a CPU ``torch.nn.Dropout`` draws one double per element in a single thread, which takes a
    tenth of an update; this class draws 16 random bits per element instead.

    Source: Srivastava et al. 2014.
    """

    def __init__(self, p: float, backend: str = "auto") -> None:
        super().__init__()
        self.p = p
        self.backend = backend

    def forward(
        self,
        activations: Float[Tensor, "B L H"],
        residual: Float[Tensor, "B L H"] | None = None,
        gate: Float[Tensor, "B K H"] | None = None,
    ) -> Float[Tensor, "B L H"]:
        """Return ``residual + gate * activations``, with dropout in training mode."""
        levels, n_dropped = None, 0
        if self.training and self.p > 0.0:
            if activations.device.type == "cpu":
                n_dropped = min(round(self.p * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)
                draws = torch.empty(-(-activations.numel() // _PER_DRAW), dtype=torch.int64)
                draws.random_(torch.iinfo(torch.int64).min, None)
                levels = draws.view(torch.int16)[: activations.numel()].view(activations.shape)
            else:
                activations = nn.functional.dropout(activations, self.p)
        if levels is None and residual is None:
            return activations
        return add_residual(
            *(activations, residual, gate), levels=levels, n_dropped=n_dropped, backend=self.backend
        )

    def extra_repr(self) -> str:
        """Describe the module in ``print(model)``."""
        return f"p={self.p}"


_Mixer = MambaMixer | AttentionMixer | ConvolutionMixer
_MIXERS: dict[str, type[_Mixer]] = {
    "mamba": MambaMixer,
    "attention": AttentionMixer,
    "convolution": ConvolutionMixer,
}
_CHANNEL_MIXING_RATIO = 4
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Modulation(nn.Module):
    """Norm whose factors and shifts come from each step's return-to-go.

    At the start they leave everything as it is: factors of one, shifts of zero.

    Args:
        config: ``hidden_size``, the size of a token, and ``backend``.
        has_gate: Whether there is a third row, the factor of what follows the norm.

    Source: Peebles and Xie 2023 (arXiv:2212.09748), adaLN, with gates that start at one.
    """

    def __init__(self, config: DecisionMambaConfig, has_gate: bool) -> None:
        super().__init__()
        self.width, self.backend = config.hidden_size, config.backend
        self.n_rows = 3 if has_gate else 2
        self.projection = nn.Linear(CONDITION_SIZE, self.n_rows * self.width)

    def reset(self) -> None:
        """Set the initial weights, which ``initialize`` must leave alone."""
        factor_shift_gate = torch.tensor([1.0, 0.0, 1.0])[: self.n_rows]
        nn.init.zeros_(self.projection.weight)
        with torch.no_grad():
            self.projection.bias.view(self.n_rows, -1).copy_(factor_shift_gate.unsqueeze(1))

    def forward(
        self, tokens: Float[Tensor, "B L H"], condition: Float[Tensor, "B K C"]
    ) -> tuple[Float[Tensor, "B L H"], Float[Tensor, "B K _"]]:
        """Return the normalised tokens and, with a gate, gates: a row for each step."""
        rows = self.projection(condition)
        return modulated_norm(tokens, rows, self.width, backend=self.backend)


class Block(nn.Module):
    """Pre-norm residual block: mix the tokens, then (``channel_mixing``) the channels.

    Where returns-to-go are not in the sequence, every method takes ``condition``, their embedding
    (B, K, C), and modulates the norm before the mixer and the mixer's output by it.

    Source: Ota 2024 (arXiv:2403.19925), figure 1 and table 3; Peebles and Xie 2023
    (arXiv:2212.09748) for the modulation.
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        is_decoupled = config.conditioning == "decoupled"
        self.norm = nn.LayerNorm(width, elementwise_affine=not is_decoupled)
        self.modulation = Modulation(config, has_gate=True) if is_decoupled else None
        self.mixer: _Mixer = _MIXERS[config.mixer](config)
        self.dropout = Dropout(config.dropout, config.backend)
        self.channel_mixer: nn.Sequential | None = None
        if config.resolved_channel_mixing:
            self.channel_mixer = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, _CHANNEL_MIXING_RATIO * width),
                _ACTIVATIONS[config.activation](),
                nn.Linear(_CHANNEL_MIXING_RATIO * width, width),
                Dropout(config.dropout, config.backend),
            )

    def forward(
        self,
        tokens: Float[Tensor, "B L H"],
        readout: slice | None = None,
        condition: Float[Tensor, "B K C"] | None = None,
    ) -> Float[Tensor, "B M H"]:
        """Apply the block to whole sequences; ``readout`` selects the tokens to return."""
        normed, gate = self._normalize(tokens, condition)
        return self._add(tokens, self.mixer(normed, readout), gate, readout)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
        condition: Float[Tensor, "B K C"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Apply the block to continued sequences; see :meth:`MambaMixer.resume`."""
        normed, gate = self._normalize(tokens, condition)
        mixed, new_state = self.mixer.resume(normed, state, readout, real)
        return self._add(tokens, mixed, gate, readout), new_state

    def step(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        condition: Float[Tensor, "B L C"] | None = None,
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Apply the block to the next tokens in acting; see :meth:`MambaMixer.step`."""
        normed, gate = self._normalize(tokens, condition)
        mixed, new_state = self.mixer.step(normed, state)
        added = tokens + mixed if gate is None else torch.addcmul(tokens, mixed, gate)
        return self._mix_channels(added), new_state

    def _normalize(
        self, tokens: Float[Tensor, "B L H"], condition: Float[Tensor, "B K C"] | None
    ) -> tuple[Float[Tensor, "B L H"], Float[Tensor, "B K H"] | None]:
        """Return the input of the mixer, and the factor of its output."""
        if self.modulation is None or condition is None:
            return self.norm(tokens), None
        normed, gate = self.modulation(tokens, condition)
        return normed, gate

    def _add(
        self,
        tokens: Float[Tensor, "B L H"],
        mixed: Float[Tensor, "B M H"],
        gate: Float[Tensor, "B K H"] | None,
        readout: slice | None,
    ) -> Float[Tensor, "B M H"]:
        """Add the mixer's output to the tokens, and mix the channels."""
        if readout is not None:  # the state tokens: one for each step, as for each row of the gate
            tokens = tokens[:, readout]
        return self._mix_channels(self.dropout(mixed, tokens, gate))

    def _mix_channels(self, tokens: Float[Tensor, "B L H"]) -> Float[Tensor, "B L H"]:
        if self.channel_mixer is None:
            return tokens
        *layers, dropout = self.channel_mixer
        mixed = tokens
        for layer in layers:
            mixed = layer(mixed)
        added: Tensor = dropout(mixed, tokens)
        return added


class ContinuousHead(nn.Module):
    """Predict an action with a tanh, scaled to the bounds of the space."""

    low: Tensor
    high: Tensor
    center: Tensor
    half_range: Tensor

    def __init__(self, space: spaces.Box, hidden_size: int) -> None:
        super().__init__()
        if not (space.is_bounded("both") and (space.high > space.low).all()):
            message = (
                f"action space {space} has a bound that is not finite or is empty: rescale its "
                f"actions into finite bounds (gymnasium.wrappers.RescaleAction)"
            )
            raise SpaceError(message, setting="action_space", value=space)
        self.shape = space.shape
        self.projection = nn.Linear(hidden_size, math.prod(space.shape))
        low = torch.tensor(space.low, dtype=torch.float32).flatten()
        high = torch.tensor(space.high, dtype=torch.float32).flatten()
        center, half_range = (low + high) / 2, (high - low) / 2
        bounds = {"low": low, "high": high, "center": center, "half_range": half_range}
        for name, bound in bounds.items():  # not saved: they come from the space
            self.register_buffer(name, bound, persistent=False)

    def forward(self, tokens: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch A"]:
        """Predict flat actions in the units of the space."""
        squashed = torch.tanh(self.projection(tokens).float())
        return torch.addcmul(self.center, self.half_range, squashed)

    def losses(
        self, predictions: Float[Tensor, "*batch A"], actions: Num[Tensor, "*batch _"]
    ) -> Float[Tensor, "*batch"]:
        """Return each step's squared error, averaged over the action's dimensions.

        Actions are rescaled to [-1, 1], so that dimensions of different ranges weigh the same.
        """
        error = (predictions - actions.flatten(2)) / self.half_range  # (B, K, A)
        return error.square().mean(dim=-1)

    def act(
        self, predictions: Float[Tensor, "B A"], deterministic: bool
    ) -> Float[Tensor, "B *act"]:
        """Return the predicted actions, whether ``deterministic`` or not."""
        # Rounding can carry a saturated tanh past a bound.
        return predictions.clamp(self.low, self.high).reshape(-1, *self.shape)  # (B, *act)


class DiscreteHead(nn.Module):
    """Predict the logits of a discrete action."""

    def __init__(self, space: spaces.Discrete, hidden_size: int) -> None:
        super().__init__()
        self.start = int(space.start)
        self.projection = nn.Linear(hidden_size, int(space.n), bias=False)

    def forward(self, tokens: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch A"]:
        """Predict logits."""
        logits: Tensor = self.projection(tokens).float()
        return logits

    def losses(
        self, predictions: Float[Tensor, "B K A"], actions: Num[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """Return each step's cross-entropy."""
        # Padding is zero, which may lie below the space's first action.
        classes = (actions - self.start).clamp_min(0)
        return nn.functional.cross_entropy(
            predictions.flatten(0, 1), classes.flatten(), reduction="none"
        ).view_as(classes)  # (B K) to (B, K)

    def act(self, predictions: Float[Tensor, "B A"], deterministic: bool) -> Num[Tensor, " B"]:
        """Return the most likely action, or one sampled at temperature 1."""
        if deterministic:
            return predictions.argmax(dim=-1) + self.start
        probabilities = predictions.softmax(dim=-1)
        return torch.multinomial(probabilities, 1).squeeze(-1) + self.start


ActionHead = ContinuousHead | DiscreteHead


def make_head(space: spaces.Space[Any], hidden_size: int) -> ActionHead:
    """Build the head for an action space."""
    if isinstance(space, spaces.Box):
        return ContinuousHead(space, hidden_size)
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(space, hidden_size)
    message = f"action space {space} is not supported: use Box or Discrete"
    raise SpaceError(message, setting="action_space", value=space)


_STD = 0.02


def initialize(
    model: nn.Module, scheme: Literal["mamba", "paper"], leave: nn.Module | None = None
) -> None:
    """Initialise every weight of the model in place.

    Source: Gu and Dao 2023 (arXiv:2312.00752), section 3.6, and mamba_ssm's scaling of the
    residual projections; the official code of arXiv:2403.19925.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    left = set() if leave is None else set(leave.modules())
    for module in model.modules():
        if module in left:
            continue
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)
        elif scheme == "paper" and isinstance(module, nn.Linear):
            _init_linear(module)
    for module in model.modules():
        if isinstance(module, Modulation):
            module.reset()
    if scheme == "paper":
        return
    for block in blocks:
        if isinstance(block.mixer, MambaMixer):
            _rescale_residual(block.mixer.out_proj, len(blocks))
        elif isinstance(block.mixer, AttentionMixer):
            _init_linear(block.mixer.in_proj)
            _init_linear(block.mixer.out_proj)
        for module in block.channel_mixer or ():
            if isinstance(module, nn.Linear):
                _init_linear(module)


def _init_linear(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _rescale_residual(linear: nn.Linear, n_layers: int) -> None:
    """Keep the residual stream's variance from growing with depth."""
    linear.weight.data.div_(math.sqrt(n_layers))


class SequenceModel(nn.Module):
    """Decision Mamba; with another ``config.mixer`` Decision Transformer or ConvFormer.

    Args:
        observation_space: Space of one flat observation or image.
        action_space: Bounded Box or Discrete.
        config: The architecture.
        statistics: Mean and standard deviation of the observations, or None.
        observation_encoder: Replaces the encoder chosen by the space and the config, and keeps
            its own initial weights; maps (B, K, *obs) to (B, K, hidden_size).

    Raises:
        SpaceError: A space that no encoder or head fits.

    Source: Ota 2024 (arXiv:2403.19925), section 3.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None,
        observation_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.embedding = TokenEmbedding(
            observation_space, action_space, config, statistics, observation_encoder
        )
        self.tokens_per_step = config.tokens_per_step
        # An action is predicted at its step's state, the last token but the action itself.
        self.state_tokens = slice(self.tokens_per_step - 2, None, self.tokens_per_step)
        self.dropout = Dropout(config.dropout, config.backend)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        is_decoupled = config.conditioning == "decoupled"
        self.norm = nn.LayerNorm(config.hidden_size, elementwise_affine=not is_decoupled)
        self.modulation = Modulation(config, has_gate=False) if is_decoupled else None
        self.head = make_head(action_space, config.hidden_size)
        initialize(self, config.init, leave=observation_encoder)

    def forward(
        self,
        observations: Num[Tensor, "B K *obs"],
        actions: Num[Tensor, "B K *act"],
        returns_to_go: Float[Tensor, "B K"],
        timesteps: Int[Tensor, "B K"],
    ) -> Float[Tensor, "B K A"]:
        """Predict the action of every step from the tokens before it.

        Args:
            observations: In the environment's units.
            actions: In the environment's units; the prediction at step t sees those before t.
            returns_to_go: In the environment's units.
            timesteps: Step in the episode, from 0.

        Returns:
            The head's predictions: flat actions, or logits.
        """
        # Under bf16 the blocks alone run in half precision: it would round a return-to-go of
        # 3,600 to a multiple of 16, and an action to a multiple of 0.004.
        device = returns_to_go.device.type
        with torch.autocast(device, enabled=False):
            condition = self.embedding.condition(returns_to_go, timesteps)
            tokens = self.dropout(
                self.embedding(observations, actions, returns_to_go, timesteps)
            )  # (B, 3K - 1 or 2K - 1, H)
        state_tokens = self.mix(tokens, condition)  # (B, K, H)
        with torch.autocast(device, enabled=False):
            return self.predict(state_tokens.float(), condition)

    def resume(
        self,
        observations: Num[Tensor, "B K *obs"],
        actions: Num[Tensor, "B K *act"],
        returns_to_go: Float[Tensor, "B K"],
        timesteps: Int[Tensor, "B K"],
        layers: list[dict[str, Tensor]],
        real: Bool[Tensor, "B K"] | None = None,
    ) -> tuple[Float[Tensor, "B K A"], list[dict[str, Tensor]]]:
        """Predict the actions of steps that continue from recurrent states.

        An episode in pieces, each from the states after the previous piece, gives the same
        predictions as the episode in one window. Gradients flow into ``layers``.

        Args:
            observations: As for :meth:`forward`.
            actions: As for :meth:`forward`; the last one enters the new states.
            returns_to_go: As for :meth:`forward`.
            timesteps: As for :meth:`forward`.
            layers: One recurrent state per block.
            real: False in the padding left of an episode's first step; None is True everywhere.

        Returns:
            The head's predictions, and the states after the last action.
        """
        device = returns_to_go.device.type
        with torch.autocast(device, enabled=False):  # as in forward
            condition = self.embedding.condition(returns_to_go, timesteps)
            embedded = self.embedding(
                observations, actions, returns_to_go, timesteps, keep_last_action=True
            )
            tokens = self.dropout(embedded)  # (B, 3K or 2K, H)
        of_tokens = None if real is None else real.repeat_interleave(self.tokens_per_step, dim=1)
        new_layers = []
        for index, (block, state) in enumerate(zip(self.layers, layers, strict=True), start=1):
            readout = self.state_tokens if index == len(layers) else None
            tokens, new_state = block.resume(tokens, state, readout, of_tokens, condition)
            new_layers.append(new_state)
        with torch.autocast(device, enabled=False):
            return self.predict(tokens.float(), condition), new_layers

    def mix(
        self, tokens: Float[Tensor, "B L H"], condition: Float[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K H"]:
        """Run embedded windows through every block, and return the state tokens."""
        *inner, last = self.layers
        for block in inner:
            tokens = block(tokens, None, condition)
        state_tokens: Tensor = last(tokens, self.state_tokens, condition)
        return state_tokens

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def predict(
        self, state_tokens: Float[Tensor, "B K H"], condition: Float[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K A"]:
        """Predict from the last block's output at state tokens."""
        if self.modulation is None or condition is None:
            normed = self.norm(state_tokens)
        else:
            normed, _ = self.modulation(state_tokens, condition)
        prediction: Tensor = self.head(normed)
        return prediction

    def initial_layers(self, batch_size: int) -> list[dict[str, Tensor]]:
        """Return each block's recurrent state before the first token."""
        return [block.mixer.initial_state(batch_size) for block in self.layers]

    def step(
        self,
        tokens: Float[Tensor, "B L H"],
        condition: Float[Tensor, "B L C"] | None,
        layers: list[dict[str, Tensor]],
    ) -> tuple[Float[Tensor, "B A"], list[dict[str, Tensor]]]:
        """Run the next tokens through every block in acting.

        Args:
            tokens: Embedded tokens, the last one a state token.
            condition: What modulates each token, from :meth:`embed_step`.
            layers: One recurrent state per block.

        Returns:
            The prediction at the last token, and the states after it.
        """
        new_layers = []
        for block, state in zip(self.layers, layers, strict=True):
            tokens, new_state = block.step(tokens, state, condition)
            new_layers.append(new_state)
        newest = None if condition is None else condition[:, -1:]
        return self.predict(tokens[:, -1:], newest).squeeze(1), new_layers

    def embed_step(
        self,
        previous_actions: Num[Tensor, "B *act"] | None,
        returns_to_go: Float[Tensor, " B"],
        observations: Num[Tensor, "B *obs"],
        timesteps: Int[Tensor, " B"],
        previous_returns_to_go: Float[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B L H"], Float[Tensor, "B L C"] | None]:
        """Embed one step in acting: the previous action, the return-to-go and the observation.

        Args:
            previous_actions: Actions of the previous step; None at an episode's first step.
            returns_to_go: In the environment's units.
            observations: In the environment's units.
            timesteps: Step in the episode, from 0; at least 1 with a previous action.
            previous_returns_to_go: Those of the previous step, which modulate the action's token;
                None where returns-to-go are tokens, or without a previous action.

        Returns:
            The tokens, of which the last is the state's, and what modulates each; None where
            returns-to-go are tokens.
        """
        embedding = self.embedding
        now = timesteps.unsqueeze(1)  # (B, 1)
        parts, times = [embedding.embed_observations(observations.unsqueeze(1))], [now]
        asked, asked_at = [returns_to_go.unsqueeze(1)], [now]
        if not embedding.is_decoupled:
            parts.insert(0, embedding.embed_returns(asked[0]))
            times.append(now)
        if previous_actions is not None:
            parts.insert(0, embedding.embed_actions(previous_actions.unsqueeze(1)))
            times.insert(0, now - 1)
            if previous_returns_to_go is not None:
                asked.insert(0, previous_returns_to_go.unsqueeze(1))
                asked_at.insert(0, now - 1)
        tokens = embedding.add_time(torch.cat(parts, dim=1), torch.cat(times, dim=1))
        normed: Tensor = embedding.norm(tokens)
        return normed, embedding.condition(torch.cat(asked, dim=1), torch.cat(asked_at, dim=1))
