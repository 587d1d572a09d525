"""From a window of steps to its sequence of tokens."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.networks.encoders import ActionEncoder, make_observation_encoder

__all__ = ["TOKENS_PER_STEP", "TokenEmbedding"]

TOKENS_PER_STEP = 3  # return-to-go, state, action


class TokenEmbedding(nn.Module):
    """Interleave the embedded returns-to-go, observations and actions of a window.

    Args:
        observation_space: Space of one flat observation or image.
        action_space: Space of one action.
        config: Widths, encoders, time encoding and return scale.
        statistics: What observations are standardised with, or None.
        observation_encoder: Takes the place of the encoder that the space and the config call
            for; (B, K, *obs) to (B, K, hidden_size).

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

        The last action is left out: it comes after everything that is predicted.

        Args:
            observations: As the environment gives them.
            actions: As the environment takes them.
            returns_to_go: In the environment's units.
            timesteps: Step in the episode, from 0; clamped at the table's end.
            keep_last_action: Whether to keep that last token, for steps that come after these;
                not with the global time encoding, which has no place for it.

        Returns:
            The tokens, ready for the first block.
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
        """Do the same as :meth:`forward` where the observations are embedded already.

        Args:
            embedded_observations: What :meth:`embed_observations` made of them.
            actions: As for :meth:`forward`, as is what follows.
            returns_to_go: In the environment's units.
            timesteps: Step in the episode, from 0.
            keep_last_action: Whether the last action is there.

        Returns:
            The tokens, ready for the first block.
        """
        tokens = torch.stack(
            [
                self.embed_returns(returns_to_go),
                embedded_observations,
                self.embed_actions(actions),
            ],
            dim=2,
        )  # (B, K, 3, H)
        if self.position_table is None:
            timed = self.add_time(tokens, timesteps.unsqueeze(2))
        else:  # the Atari model adds the *window's* place in the episode
            timed = self.add_time(tokens, timesteps[:, :1].unsqueeze(2))
        sequence = timed.flatten(1, 2)  # (B, 3K, H)
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
        """Add the embedding of the time step, if there is one."""
        if self.timestep_table is None:
            return tokens
        table_index = timesteps.clamp(0, self.max_timestep - 1)
        timed: Tensor = tokens + self.timestep_table(table_index)
        return timed
