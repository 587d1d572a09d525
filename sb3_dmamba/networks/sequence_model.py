"""The model: windows of steps in, an action prediction at each step out."""

from __future__ import annotations

from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.networks.block import Block
from sb3_dmamba.networks.dropout import Dropout
from sb3_dmamba.networks.embedding import TOKENS_PER_STEP, TokenEmbedding
from sb3_dmamba.networks.heads import make_head
from sb3_dmamba.networks.initialization import initialize

__all__ = ["SequenceModel"]

_STATE_TOKENS = slice(1, None, TOKENS_PER_STEP)  # an action is read where its state was seen


class SequenceModel(nn.Module):
    """Decision Mamba, or with ``config.mixer="attention"`` Decision Transformer.

    Args:
        observation_space: Space of one flat observation or image.
        action_space: Bounded Box or Discrete.
        config: The architecture.
        statistics: What observations are standardised with, or None.
        observation_encoder: Takes the place of the encoder that the space and the config call
            for, and keeps the weights it comes with; (B, K, *obs) to (B, K, hidden_size).

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
        """Predict the action of every step from what came before it.

        Args:
            observations: As the environment gives them.
            actions: As the environment takes them; the prediction at step t sees those before t.
            returns_to_go: In the environment's units.
            timesteps: Step in the episode, from 0.

        Returns:
            The head's predictions: actions, or logits.
        """
        # Under bf16 the blocks run in half precision, but not what comes in and goes out: a
        # return-to-go of 3,600 would be known to the nearest 16, an action to the nearest 0.004.
        device = returns_to_go.device.type
        with torch.autocast(device, enabled=False):
            tokens = self.dropout(self.embedding(observations, actions, returns_to_go, timesteps))
        state_tokens = self.mix(tokens)
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
        """Predict the actions of steps that follow others, continuing from the recurrent states.

        A whole episode in pieces, each from the states after the one before, gives the
        predictions that the episode as one window gives. Gradients flow into ``layers``.

        Args:
            observations: As for :meth:`forward`, as are the next three.
            actions: The last one is taken in too.
            returns_to_go: In the environment's units.
            timesteps: Step in the episode, from 0.
            layers: One recurrent state a block.
            real: False on the left of an episode's first step; None is True everywhere.

        Returns:
            The head's predictions, and the states after the last action.
        """
        device = returns_to_go.device.type
        with torch.autocast(device, enabled=False):  # as in forward
            embedded = self.embedding(
                observations, actions, returns_to_go, timesteps, keep_last_action=True
            )
            tokens = self.dropout(embedded)
        of_tokens = None if real is None else real.repeat_interleave(TOKENS_PER_STEP, dim=1)
        new_layers = []
        for index, (block, state) in enumerate(zip(self.layers, layers, strict=True), start=1):
            readout = _STATE_TOKENS if index == len(layers) else None
            tokens, new_state = block.resume(tokens, state, readout, of_tokens)
            new_layers.append(new_state)
        with torch.autocast(device, enabled=False):
            return self.predict(tokens.float()), new_layers

    def mix(self, tokens: Float[Tensor, "B L H"]) -> Float[Tensor, "B K H"]:
        """Run embedded windows through every block, and return the state tokens alone."""
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
        """Read the prediction off the last block's output at a state token."""
        prediction: Tensor = self.head(self.norm(state_tokens))
        return prediction

    def initial_layers(self, batch_size: int) -> list[dict[str, Tensor]]:
        """Return each block's recurrent state before the first token."""
        return [block.mixer.initial_state(batch_size) for block in self.layers]

    def step(
        self, tokens: Float[Tensor, "B L H"], layers: list[dict[str, Tensor]]
    ) -> tuple[Float[Tensor, "B A"], list[dict[str, Tensor]]]:
        """Run the next tokens through every block, continuing from the recurrent states.

        Args:
            tokens: Embedded tokens, the last one a state token.
            layers: One recurrent state a block.

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
        """Embed what is new at one step: the last action, the return-to-go and the observation.

        Args:
            previous_actions: Actions of the step before; None at the first step, which has none.
            returns_to_go: In the environment's units.
            observations: As the environment gives them.
            timesteps: Step in the episode, from 0; at least 1 where there is a previous action.

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
