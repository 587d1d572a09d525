"""Flat arrays in .npz files: streamed, with any flag of an end, and never unpickled."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.data.sources.d4rl import open_d4rl_file
from tests.data.builders import flat_arrays, refusal, unlike

Arrays = dict[str, Any]


def write(path: Path, arrays: Arrays, compressed: bool = True) -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(path, **arrays)
    return path


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return path


def to_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_layouts_are_the_dict_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = flat_arrays()
    expected = load_trajectories(arrays)
    layouts = [
        arrays,
        {**arrays, "observations": np.asfortranarray(arrays["observations"])},
        {**arrays, "observations": arrays["observations"].astype(">f8")},
        {**arrays, "rewards": arrays["rewards"][:, None], "infos": np.array([{}, None], object)},
    ]
    for module in ("data.sources.d4rl", "data.validation"):
        monkeypatch.setattr(f"sb3_dmamba.{module}.CHUNK_BYTES", 200)
    for compressed in (True, False):
        for layout in layouts:
            path = write(tmp_path / "hopper_medium-v2.npz", layout, compressed)
            data = load_trajectories(path)
            assert (data.env_id, data.source) == ("Hopper-v4", f"npz:{path}")
            pieces = list(open_d4rl_file(path).pieces())
            assert [piece.lengths.tolist() for piece in pieces] == [[4], [3], [2]]
            for key in ("observations", "actions", "rewards"):
                np.testing.assert_array_equal(getattr(data, key), getattr(expected, key))
                parts = [getattr(piece, key) for piece in pieces]
                np.testing.assert_array_equal(np.concatenate(parts), getattr(expected, key))


def test_flags_that_do_not_tell_a_time_limit(tmp_path: Path) -> None:
    arrays = {k: v for k, v in flat_arrays().items() if k not in ("terminals", "timeouts")}
    steps = np.arange(9)
    dones, starts = np.isin(steps, (3, 6)), np.isin(steps, (0, 4, 7))
    for flags in ({"dones": dones}, {"done": dones[:, None]}, {"episode_starts": starts}):
        sources = (arrays | flags, write(tmp_path / "a.npz", arrays | flags))
        for source in sources:
            error = refusal(source)
            assert error.setting == "terminals"
            for option in ("no_time_limit=True", "max_episode_steps"):
                assert option in str(error)
            data = load_trajectories(source, no_time_limit=True)
            assert data.terminated.tolist() == [True, True, False]
            assert data.truncated.tolist() == [False] * 3
            data = load_trajectories(source, max_episode_steps=3)
            assert data.lengths.tolist() == [4, 3, 2]
            assert data.terminated.tolist() == [True, False, False]
            assert data.truncated.tolist() == [False, True, False]
            error = refusal(source, no_time_limit=True, max_episode_steps=3)
            assert error.setting == "max_episode_steps"
    for no_flags in (np.array([0, 4, 7]), steps):
        error = refusal(arrays | {"episode_starts": no_flags}, no_time_limit=True)
        assert error.setting == "episode_starts"
    both = arrays | {"terminals": steps == 3, "episode_starts": np.isin(steps, (0, 4, 7))}
    for source in (both, write(tmp_path / "a.npz", both)):
        data = load_trajectories(source)
        assert data.terminated.tolist() == [True, False, False]
        assert data.truncated.tolist() == [False, True, False]


def members(**changes: bytes) -> dict[str, bytes]:
    whole = {f"{name}.npy": to_bytes(array) for name, array in flat_arrays().items()}
    return whole | {f"{name}.npy": contents for name, contents in changes.items()}


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


WRONG: list[tuple[dict[str, bytes], dict[str, Any]]] = [
    ({"rewards": to_bytes(np.array([None] * 9))}, {"setting": "rewards", "said": "object"}),
    ({"rewards": to_bytes(np.array(["a"] * 9))}, {"setting": "rewards", "said": "give numbers"}),
    ({"rewards": to_bytes(np.float32(1))}, {"setting": "rewards"}),
    ({"rewards": to_bytes(np.zeros(8))}, {"setting": "observations", "value": (9, 11)}),
    ({"rewards": to_bytes(np.zeros(0))}, {"setting": "rewards"}),
    ({"rewards": b"not an array"}, {"setting": "rewards"}),
    ({"rewards": b""}, {"setting": "rewards"}),
    ({"rewards": header("(9,)") + bytes(8)}, {"setting": "rewards"}),
    ({"rewards": header("(1000000000000,)") + bytes(36)}, {"setting": "rewards"}),
    ({"rewards": header("(-9,)") + bytes(36)}, {"setting": "rewards"}),
    ({"observations": to_bytes(np.zeros((9, 11), complex))}, {"setting": "observations"}),
    ({"observations": to_bytes(np.full((9, 11), np.nan))}, {"index": 0, "episode": 0}),
    ({"timeouts": to_bytes(np.full(9, 2))}, {"setting": "timeouts", "value": 2}),
]


def test_wrong_members(tmp_path: Path) -> None:
    wrong = []
    for changes, expected in WRONG:
        path = pack(tmp_path / "a.npz", members(**changes))
        wrong += unlike(changes, refusal(path), {"path": path, **expected})
    assert not wrong, "\n".join(wrong)
    arrays = flat_arrays()
    path = write(tmp_path / "a.npz", {"obs": arrays.pop("observations"), **arrays})
    assert not unlike("obs", refusal(path), {"setting": "observations", "said": "rename 'obs'"})


def test_damaged_archives(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = flat_arrays() | {"observations": generator.normal(size=(9, 5000))}
    path = write(tmp_path / "a.npz", arrays)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"no archive"):
        path.write_bytes(damaged)
        assert refusal(path).path == str(path)
    middle = whole.index(b"observations.npy") + 200_000  # within the compressed numbers
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert not unlike("zeros", refusal(path), {"path": path, "setting": "observations"})
    pack(path, members(), zipfile.ZIP_LZMA)
    assert not unlike("LZMA", refusal(path), {"path": path, "setting": "observations"})
    assert refusal(tmp_path / "none.npz").setting == "source"
