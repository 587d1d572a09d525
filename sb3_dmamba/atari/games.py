"""The games of the DQN replay, and the actions that each reacts to."""

from __future__ import annotations

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.errors import DatasetError

__all__ = ["MINIMAL_ACTIONS", "N_ACTIONS", "canonical_game"]

MINIMAL_ACTIONS = {
    "Breakout": ("NOOP", "FIRE", "RIGHT", "LEFT"),
    "Qbert": ("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN"),
    "Pong": ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"),
    "Seaquest": (
        *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN"),
        *("UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
        *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE"),
        *("UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
    ),
}
"""The actions that the paper's games react to, in the order of the data's action numbers.

Source: the emulator's ``getMinimalActionSet``; a test compares.
"""

_BY_COUNT = {
    3: "Freeway Skiing",
    4: "Atlantis",
    6: "AirRaid Bowling Carnival DemonAttack NameThisGame Pooyan SpaceInvaders UpNDown",
    7: "Assault",
    8: "Gopher Phoenix Tutankham",
    9: "Asterix BeamRider CrazyClimber Enduro MsPacman VideoPinball",
    10: "Amidar TimePilot WizardOfWor",
    14: "Asteroids KungFuMaster",
    16: "JourneyEscape",
    18: "Alien BankHeist BattleZone Berzerk Boxing Centipede ChopperCommand DoubleDunk "
    "ElevatorAction FishingDerby Frostbite Gravitar Hero IceHockey Jamesbond Kangaroo Krull "
    "MontezumaRevenge Pitfall PrivateEye Riverraid RoadRunner Robotank Solaris StarGunner "
    "Tennis Venture YarsRevenge Zaxxon",
}

N_ACTIONS = {game: count for count, games in _BY_COUNT.items() for game in games.split()}
N_ACTIONS |= {game: len(actions) for game, actions in MINIMAL_ACTIONS.items()}
"""Game -> size of its minimal action set, which numbers the data's actions.

Source: ``getMinimalActionSet`` of ale-py 0.11.0, for the 60 games that Dopamine trained on.
"""

_BY_PLAIN_NAME = {game.lower(): game for game in N_ACTIONS}


def canonical_game(name: str) -> str:
    """Return the game as the DQN replay spells it: "space_invaders" is ``"SpaceInvaders"``.

    Raises:
        DatasetError: There is no such game; names the nearest.
    """
    plain = "".join(character for character in name.lower() if character.isalnum())
    if plain not in _BY_PLAIN_NAME:
        hint = did_you_mean(near_names(plain, N_ACTIONS)) or "pass game='Breakout'"
        raise DatasetError(
            f"{name!r} is not a game of the DQN replay: {hint}",
            setting="game",
            value=name,
            choices=N_ACTIONS,
        )
    return _BY_PLAIN_NAME[plain]
