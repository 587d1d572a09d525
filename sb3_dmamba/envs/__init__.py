"""The package's own environments: their Gymnasium ids, and the games of the DQN replay dataset.

Light: the emulator, OpenCV and Gymnasium are imported when an environment is made.
"""

from __future__ import annotations

import re
import sys

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.errors import DatasetError

__all__ = [
    "ATARI_ID",
    "MINIMAL_ACTIONS",
    "N_ACTIONS",
    "TMAZE_ID",
    "TMAZE_LENGTHS",
    "canonical_game",
    "is_atari",
    "parse_tmaze_name",
    "register",
    "register_if_gymnasium_is_loaded",
]

_ATARI = "sb3_dmamba/Atari-v0"
_TMAZE = "sb3_dmamba/TMaze-v0"
_ENTRY_POINTS = {_ATARI: "sb3_dmamba.envs.atari:AtariGame", _TMAZE: "sb3_dmamba.envs.tmaze:TMaze"}
_TMAZE_NAME = re.compile(r"tmaze-([1-9]\d{0,4})")

ATARI_ID = f"sb3_dmamba:{_ATARI}"  # for gymnasium.make, with AtariGame's arguments
TMAZE_ID = f"sb3_dmamba:{_TMAZE}"  # for gymnasium.make, with TMaze's arguments
TMAZE_LENGTHS = (50,)  # of the tasks that are listed; every other length has a name too

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

Source: the emulator's ``getMinimalActionSet``.
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
    """Return the game as the DQN replay spells it: "space_invaders" is ``"SpaceInvaders"``."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    if plain not in _BY_PLAIN_NAME:
        hint = did_you_mean(near_names(plain, N_ACTIONS)) or "pass game='Breakout'"
        problem = f"{name!r} is not a game of the DQN replay: {hint}"
        raise DatasetError(problem, setting="game", value=name, choices=N_ACTIONS)
    return _BY_PLAIN_NAME[plain]


def is_atari(env_id: str | None) -> bool:
    """Return whether an environment's id is :data:`ATARI_ID`, with or without the package."""
    return env_id in (ATARI_ID, _ATARI)


def parse_tmaze_name(name: str) -> int | None:
    """Return the length of the corridor in a name such as ``"tmaze-50"``; None in other names."""
    match = _TMAZE_NAME.fullmatch(name)
    return None if match is None else int(match.group(1))


def register() -> None:
    """Register the package's ids with Gymnasium, once."""
    from gymnasium.envs.registration import register as register_id
    from gymnasium.envs.registration import registry

    for env_id, entry_point in _ENTRY_POINTS.items():
        if env_id not in registry:
            register_id(env_id, entry_point=entry_point)


def register_if_gymnasium_is_loaded() -> None:
    """Register where ``gymnasium.make("sb3_dmamba:...")`` is what imports the package."""
    if "gymnasium.envs.registration" in sys.modules:
        register()
