"""Decision Transformer pickles: a list with a dict of arrays for each episode."""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data.sources.arrays import (
    check_ends,
    check_keys,
    flatten_observations,
    infer_action_space,
    load_arrays,
)
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.spaces import check_action_space

_NUMBER = re.compile(r"[biuf]\d*|\?|bool|u?int\d+|float\d+")
_SB3_BUFFER = re.compile(r"(stable_baselines3|sb3_contrib)\..*ReplayBuffer$")
_LEAD = "only pickles of numpy arrays, numbers, texts, lists, tuples and dicts are read"


def load_plain_pickle(path: Path) -> Any:
    """Unpickle plain containers, numbers and numeric numpy arrays without running code.

    Args:
        path: The file; any protocol.

    Returns:
        The contents; :func:`to_array` makes arrays of those in it.

    Raises:
        DatasetError: The file is missing, cut or no pickle, or asks for anything else (names it).
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for count, (opcode, argument, _) in enumerate(
                pickletools.genops(cast("IO[bytes]", data))
            ):
                # The C unpickler allocates what sizes and memo indices announce (genops refuses
                # sizes beyond the end of the file), and finds extensions without find_class.
                if "PUT" in opcode.name and not 0 <= int(argument or 0) <= count:
                    raise ValueError(f"memo index {argument} after {count} opcodes")
                if opcode.name.startswith("EXT"):
                    raise ValueError(f"extension {argument}")
            data.seek(0)
            return _Unpickler(data, path).load()
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except Exception as error:
        raise DatasetError(
            f"{path} is damaged or no pickle ({type(error).__name__}: {error}): get it again"
        ) from error


def to_array(value: Any) -> ndarray:
    """Return a pickled array, or a list of numbers or of arrays of one shape, as numpy's.

    Raises:
        DatasetError: It holds something else than numbers, or does not fit together.
    """
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, (list, tuple)):
        parts = [part.value if isinstance(part, _Array) else part for part in value]
        try:
            array = np.array(parts)
        except (ValueError, TypeError, MemoryError, RecursionError) as error:
            raise DatasetError(f"its parts make up no array ({error})") from error
        if array.dtype.kind in "biuf":
            return array
    raise DatasetError(f"it is a {type(value).__name__} without numbers: give an array of numbers")


class _Dtype:
    """A dtype; its value is None unless it is one of numbers."""

    def __init__(self, name: str, *_flags: Any) -> None:
        self.name = name
        self.value = np.dtype(name) if _NUMBER.fullmatch(name) else None

    def __setstate__(self, state: Any) -> None:
        if self.value is not None:  # what follows the byte order describes other dtypes
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array, or the reason why there is none; pickles make it first and fill it afterwards."""

    def __init__(self, *_reconstruct_arguments: Any) -> None:
        self._value: ndarray | str = "nothing"

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self._value = _decode(raw, dtype, shape, "F" if is_fortran else "C")

    @classmethod
    def from_buffer(cls, *arguments: Any) -> _Array:
        array = cls()
        array._value = _decode(*arguments)
        return array

    @property
    def value(self) -> ndarray:
        """The array, read-only; raises DatasetError if it is not of numbers."""
        if isinstance(self._value, str):
            raise DatasetError(f"it holds {self._value}: give an array of numbers")
        return self._value


def _decode(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> ndarray | str:
    """Return an array, read-only, or the name of a dtype that is not of numbers."""
    if not isinstance(dtype, _Dtype) or not all(type(size) is int for size in shape):
        raise ValueError("an array's dtype or shape is of a wrong kind")
    if dtype.value is None:
        return repr(dtype.name)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2's bytes
    if not isinstance(raw, (bytes, bytearray)):
        raise ValueError(f"an array's contents are a {type(raw).__name__}")
    if min(shape, default=0) < 0 or len(raw) != math.prod(shape) * dtype.value.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of {dtype.name} and shape {shape}")
    flat = np.frombuffer(bytes(raw), dtype.value)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    value = _decode(raw, dtype, (), "C")
    return None if isinstance(value, str) else value.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


class _Call:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle tries to change a function")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _Array.from_buffer,
    "_codecs.encode": _encode,  # bytes, before protocol 3
    "builtins.set": set,  # before protocol 4
    "builtins.frozenset": frozenset,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: mmap.mmap, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's texts hold the contents of arrays
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\b", "numpy._core", module)  # before NumPy 2
        asked = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if asked in _ALLOWED:
            return _Call(_ALLOWED[asked])
        if _SB3_BUFFER.match(asked):
            raise DatasetError(
                f"{self._path} is a replay buffer that Stable-Baselines3 saved (it asks for "
                f"{asked!r}, which could run code): if you trust the file, let SB3 read it, "
                f"model.load_replay_buffer(path), and use load_trajectories(model.replay_buffer), "
                f"whose save(folder) writes a store for the command line"
            )
        raise DatasetError(
            f"{self._path} asks for {asked!r}, which could run code: {_LEAD}; if you trust "
            f"the file, load it yourself and pass the arrays"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DatasetError(f"{self._path} refers to objects outside of it ({pid!r:.80}): {_LEAD}")


_TERMINATED = ("terminals", "terminations", "terminated", "dones")
_TRUNCATED = ("timeouts", "truncations", "truncated")


def read_pickle(
    path: Path,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
) -> Trajectories:
    """Read a list of episodes, or a dict of flat arrays; nothing in the file is run.

    An episode needs ``terminals``, ``timeouts`` or both. The Decision Transformer's files have no
    ``timeouts``, and only episodes that ended: there, one that did not terminate ran out of time.

    Args:
        path: The file.
        observation_space: The environment's, if it is known.
        action_space: The environment's, if it is known.

    Raises:
        DatasetError: The file is damaged, hostile or malformed; names episode and member.
        SpaceError: A space cannot be learnt.

    Source: gym/data/download_d4rl_datasets.py in github.com/kzl/decision-transformer.
    """
    contents = load_plain_pickle(path)
    try:
        if isinstance(contents, dict):
            check_keys(contents)
            known = ("observations", "actions", "rewards", *_TERMINATED[:-1], *_TRUNCATED)
            flat = {key: _array(contents, key, "") for key in known if key in contents}
            check_ends(contents)
            return load_arrays(
                flat,
                observation_space=observation_space,
                action_space=action_space,
                name=f"d4rl:{path}",
            )
        return _join(_read_episodes(contents), observation_space, action_space, path)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DatasetError(f"{path}: its episodes do not fit into memory together") from error


def _read_episodes(contents: Any) -> list[dict[str, ndarray]]:
    if not isinstance(contents, (list, tuple)) or not contents:
        raise DatasetError(
            f"it holds {'no episode' if contents in ([], ()) else type(contents).__name__}: a "
            f"list of one dict an episode is needed, or a dict of flat arrays"
        )
    return [_read_episode(episode, f"episode {i}") for i, episode in enumerate(contents)]


def _read_episode(episode: Any, where: str) -> dict[str, ndarray]:
    if not isinstance(episode, Mapping):
        raise DatasetError(f"{where} is a {type(episode).__name__}: a dict of arrays is needed")
    arrays = {key: _array(episode, key, where) for key in ("observations", "actions", "rewards")}
    n_steps = arrays["rewards"].size
    if arrays["rewards"].shape not in ((n_steps,), (n_steps, 1)) or not n_steps:
        raise DatasetError(
            f"{where}, rewards: the shape is {arrays['rewards'].shape}: there is one a step"
        )
    arrays["rewards"] = arrays["rewards"].reshape(-1)
    if arrays["actions"].dtype.kind in "iu" and arrays["actions"].shape[1:] == (1,):
        arrays["actions"] = arrays["actions"].reshape(-1)
    for key in ("observations", "actions"):
        if arrays[key].shape[:1] != (n_steps,):
            raise DatasetError(
                f"{where}, {key}: the shape is {arrays[key].shape}, and there are {n_steps} rewards"
            )
    terminated = _flag(episode, _TERMINATED, n_steps, where)
    truncated = _flag(episode, _TRUNCATED, n_steps, where)
    if terminated is None and truncated is None:
        raise DatasetError(
            f"{where} has neither 'terminals' nor 'timeouts' (nor Gymnasium's 'terminations', "
            f"'truncations'), one of which is needed: it has {_keys(episode)}"
        )
    arrays["terminated"] = np.array(bool(terminated))
    arrays["truncated"] = np.array(not terminated if truncated is None else truncated)
    return arrays


def _flag(
    episode: Mapping[Any, Any], names: tuple[str, ...], n_steps: int, where: str
) -> bool | None:
    """Return whether an episode ended so, which its last step says; None where none does."""
    name = next((name for name in names if name in episode), None)
    if name is None:
        return None
    flags = _array(episode, name, where)
    if flags.shape not in ((n_steps,), (n_steps, 1)) or not np.isin(flags, (0, 1)).all():
        raise DatasetError(f"{where}, {name}: one flag, 0 or 1, is needed for {n_steps} steps")
    early = np.flatnonzero(flags.reshape(-1)[:-1])
    if len(early):
        raise DatasetError(
            f"{where}, {name}: step {early[0]} is flagged and is not the last, {n_steps - 1}: an "
            f"episode must end there"
        )
    return bool(flags.reshape(-1)[-1])


def _join(
    episodes: list[dict[str, ndarray]],
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    path: Path,
) -> Trajectories:
    arrays: dict[str, Any] = {
        key: _concatenate(episodes, key) for key in ("observations", "actions", "rewards")
    }
    lengths = [len(episode["rewards"]) for episode in episodes]
    if action_space is None:
        action_space = infer_action_space([arrays["actions"]])
    arrays["observations"], flat = flatten_observations(arrays["observations"], observation_space)
    return Trajectories(
        **arrays,
        terminated=np.array([episode["terminated"] for episode in episodes]),
        truncated=np.array([episode["truncated"] for episode in episodes]),
        episode_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        observation_space=flat,
        action_space=check_action_space(action_space),
        source=f"d4rl:{path}",
    )


def _concatenate(episodes: list[dict[str, ndarray]], key: str) -> ndarray:
    first = episodes[0][key]
    for index, episode in enumerate(episodes):
        if episode[key].shape[1:] != first.shape[1:]:
            raise DatasetError(
                f"episode {index}, {key}: a step has shape {episode[key].shape[1:]}, and "
                f"{first.shape[1:]} in episode 0"
            )
    return np.concatenate([episode[key] for episode in episodes])


def _array(source: Mapping[Any, Any], key: str, where: str) -> ndarray:
    if key not in source:
        raise DatasetError(f"{where or 'the dict'} has no {key!r}: it has {_keys(source)}")
    try:
        return to_array(source[key])
    except DatasetError as error:
        raise DatasetError(f"{where}{', ' if where else ''}{key}: {error}") from error


def _keys(source: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(source)[:20])) or "nothing"
