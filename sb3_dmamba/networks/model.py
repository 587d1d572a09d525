"""The sequence model: token embedding, blocks and action heads, in the order of the data flow.

Of shapes, B is the batch, K the steps of a window, L its tokens, M the tokens read out, H the
width and A the size of a prediction.
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
from sb3_dmamba.networks.mixers import TOKENS_PER_STEP, AttentionMixer, ConvolutionMixer, MambaMixer


class TokenEmbedding(nn.Module):
    """Interleave the embedded returns-to-go, observations and actions of a window.

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
        self.return_scale = config.return_scale
        self.max_timestep = config.max_timestep
        if observation_encoder is None:
            observation_encoder = make_observation_encoder(observation_space, config, statistics)
        self.observation_encoder = observation_encoder
        self.action_encoder = ActionEncoder(action_space, width)
        self.return_encoder = nn.Linear(1, width)
        self.activation = nn.Tanh() if config.embedding == "tanh" else nn.Identity()
        self.timestep_table: nn.Embedding | None = None
        if config.time_encoding != "none":
            self.timestep_table = nn.Embedding(config.max_timestep, width)
        self.position_table: nn.Parameter | None = None
        if config.time_encoding == "global":
            n_positions = TOKENS_PER_STEP * config.context_length - 1
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

        The last action is left out: no prediction depends on it.
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
        returns, embedded_actions = self.embed_returns(returns_to_go), self.embed_actions(actions)
        tokens = torch.stack([returns, embedded_observations, embedded_actions], dim=2)
        # (B, K, 3, H)
        if self.position_table is not None:  # the Atari model adds the time of the first step
            timesteps = timesteps[:, :1]
        timed = self.add_time(tokens, timesteps.unsqueeze(2))  # (B, K or 1, 1) broadcasts
        sequence = timed.flatten(1, 2)  # (B, 3K, H)
        if not keep_last_action:
            sequence = sequence[:, :-1]  # (B, 3K - 1, H)
        if self.position_table is not None:
            sequence = sequence + self.position_table[: sequence.shape[1]]
        normed: Tensor = self.norm(sequence)
        return normed

    def embed_returns(self, returns_to_go: Float[Tensor, "B K"]) -> Float[Tensor, "B K H"]:
        """Embed returns-to-go, before time is added."""
        scaled_returns_to_go = (returns_to_go / self.return_scale).unsqueeze(-1)
        embedded: Tensor = self.activation(self.return_encoder(scaled_returns_to_go))
        return embedded

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


_LEVELS = 1 << 16  # one random int16 per element: probabilities are multiples of 1 / 65536
_PER_DRAW = 4  # int16s in one int64 of torch's generator


class Dropout(nn.Module):
    """Zero each activation with probability ``p`` in training, and scale the others up.

    On a CPU ``torch.nn.Dropout`` draws one double per element in a single thread, which takes a
    tenth of an update; this class draws 16 random bits per element instead.

    Source: Srivastava et al. 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, activations: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply dropout in training mode; return the activations unchanged otherwise."""
        if not self.training or self.p == 0.0:
            return activations
        if activations.device.type != "cpu":
            return nn.functional.dropout(activations, self.p)
        n_dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        n_draws = -(-activations.numel() // _PER_DRAW)
        draws = torch.empty(n_draws, dtype=torch.int64)
        draws.random_(torch.iinfo(torch.int64).min, None)
        levels = draws.view(torch.int16)[: activations.numel()].view(activations.shape)
        kept = (levels >= n_dropped - _LEVELS // 2).to(activations.dtype)
        return activations * kept.mul_(_LEVELS / (_LEVELS - n_dropped))

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


class Block(nn.Module):
    """Pre-norm residual block: mix the tokens, then (``channel_mixing``) the channels.

    Source: Ota 2024 (arXiv:2403.19925), figure 1 and table 3.
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.mixer: _Mixer = _MIXERS[config.mixer](config)
        self.dropout = Dropout(config.dropout)
        self.channel_mixer: nn.Sequential | None = None
        if config.channel_mixing:
            self.channel_mixer = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, _CHANNEL_MIXING_RATIO * width),
                _ACTIVATIONS[config.activation](),
                nn.Linear(_CHANNEL_MIXING_RATIO * width, width),
                Dropout(config.dropout),
            )

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Apply the block to whole sequences; ``readout`` selects the tokens to return."""
        mixed = self.dropout(self.mixer(self.norm(tokens), readout))
        residual = tokens if readout is None else tokens[:, readout]
        return self._mix_channels(residual + mixed)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Apply the block to continued sequences; see :meth:`MambaMixer.resume`."""
        mixed, new_state = self.mixer.resume(self.norm(tokens), state, readout, real)
        residual = tokens if readout is None else tokens[:, readout]
        return self._mix_channels(residual + self.dropout(mixed)), new_state

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Apply the block to the next tokens in acting; see :meth:`MambaMixer.step`."""
        mixed, new_state = self.mixer.step(self.norm(tokens), state)
        return self._mix_channels(tokens + mixed), new_state

    def _mix_channels(self, tokens: Float[Tensor, "B L H"]) -> Float[Tensor, "B L H"]:
        if self.channel_mixer is None:
            return tokens
        mixed: Tensor = tokens + self.channel_mixer(tokens)
        return mixed


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


_STATE_TOKENS = slice(1, None, TOKENS_PER_STEP)  # an action is predicted at its step's state


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
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
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
            tokens = self.dropout(
                self.embedding(observations, actions, returns_to_go, timesteps)
            )  # (B, 3K - 1, H)
        state_tokens = self.mix(tokens)  # (B, K, H)
        with torch.autocast(device, enabled=False):
            return self.predict(state_tokens.float())

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
            embedded = self.embedding(
                observations, actions, returns_to_go, timesteps, keep_last_action=True
            )
            tokens = self.dropout(embedded)  # (B, 3K, H)
        of_tokens = None if real is None else real.repeat_interleave(TOKENS_PER_STEP, dim=1)
        new_layers = []
        for index, (block, state) in enumerate(zip(self.layers, layers, strict=True), start=1):
            readout = _STATE_TOKENS if index == len(layers) else None
            tokens, new_state = block.resume(tokens, state, readout, of_tokens)
            new_layers.append(new_state)
        with torch.autocast(device, enabled=False):
            return self.predict(tokens.float()), new_layers

    def mix(self, tokens: Float[Tensor, "B L H"]) -> Float[Tensor, "B K H"]:
        """Run embedded windows through every block, and return the state tokens."""
        *inner, last = self.layers
        for block in inner:
            tokens = block(tokens)
        state_tokens: Tensor = last(tokens, _STATE_TOKENS)
        return state_tokens

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def predict(self, state_tokens: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch A"]:
        """Predict from the last block's output at state tokens."""
        prediction: Tensor = self.head(self.norm(state_tokens))
        return prediction

    def initial_layers(self, batch_size: int) -> list[dict[str, Tensor]]:
        """Return each block's recurrent state before the first token."""
        return [block.mixer.initial_state(batch_size) for block in self.layers]

    def step(
        self, tokens: Float[Tensor, "B L H"], layers: list[dict[str, Tensor]]
    ) -> tuple[Float[Tensor, "B A"], list[dict[str, Tensor]]]:
        """Run the next tokens through every block in acting.

        Args:
            tokens: Embedded tokens, the last one a state token.
            layers: One recurrent state per block.

        Returns:
            The prediction at the last token, and the states after it.
        """
        new_layers = []
        for block, state in zip(self.layers, layers, strict=True):
            tokens, new_state = block.step(tokens, state)
            new_layers.append(new_state)
        return self.predict(tokens[:, -1]), new_layers

    def embed_step(
        self,
        previous_actions: Num[Tensor, "B *act"] | None,
        returns_to_go: Float[Tensor, " B"],
        observations: Num[Tensor, "B *obs"],
        timesteps: Int[Tensor, " B"],
    ) -> Float[Tensor, "B L H"]:
        """Embed one step in acting: the previous action, the return-to-go and the observation.

        Args:
            previous_actions: Actions of the previous step; None at an episode's first step.
            returns_to_go: In the environment's units.
            observations: In the environment's units.
            timesteps: Step in the episode, from 0; at least 1 with a previous action.

        Returns:
            Three tokens, or two without a previous action; the last is the state's.
        """
        embedding = self.embedding
        now = timesteps.unsqueeze(1)  # (B, 1)
        parts = [
            embedding.embed_returns(returns_to_go.unsqueeze(1)),
            embedding.embed_observations(observations.unsqueeze(1)),
        ]
        times = [now, now]
        if previous_actions is not None:
            parts.insert(0, embedding.embed_actions(previous_actions.unsqueeze(1)))
            times.insert(0, now - 1)
        tokens = embedding.add_time(torch.cat(parts, dim=1), torch.cat(times, dim=1))
        normed: Tensor = embedding.norm(tokens)
        return normed
