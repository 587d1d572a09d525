"""Minari's datasets: made here, downloaded from a folder, and recorded ones."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.spaces.utils import flatten
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import serialize_space

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.data.joining import join_pieces
from sb3_dmamba.data.sources.minari import find_minari_folder, open_minari_folder, open_minari_id
from sb3_dmamba.data.trajectories import replace
from sb3_dmamba.errors import DatasetError
from tests.data.builders import assert_same, refusal, skip_without, unlike, write_minari

pytestmark = pytest.mark.usefixtures("minari_root")
LENGTHS = [3, 1, 4]
FRAME = spaces.Box(0, 255, (32, 40, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


def _stack(space: spaces.Space[Any], samples: list[Any]) -> Any:
    """Arrange samples as Minari's buffers hold them."""
    if isinstance(space, spaces.Dict):
        return {key: _stack(part, [s[key] for s in samples]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stack(part, [s[i] for s in samples]) for i, part in enumerate(space))
    return samples if isinstance(space, spaces.Text) else np.asarray(samples)


def _episodes(space: spaces.Space[Any], extra: int) -> list[list[Any]]:
    space.seed(0)
    return [[space.sample() for _ in range(length + extra)] for length in LENGTHS]


def _make(space: spaces.Space[Any], **options: Any) -> list[list[Any]]:
    """Write "box/small-v0" with that observation space; return the observations."""
    seen, done = _episodes(space, 1), _episodes(ACTIONS, 0)
    episodes = [
        {"observations": _stack(space, samples), "actions": np.array(taken), "end": end}
        for samples, taken, end in zip(seen, done, ("terminated", "truncated", "cut"), strict=True)
    ]
    write_minari("box/small-v0", space, ACTIONS, episodes, **options)
    return seen


FORMATS = ("hdf5", "arrow", "parquet")


def need(data_format: str) -> dict[str, str]:
    """Return the option that stores a dataset so, or skip the test."""
    if data_format != "hdf5":
        skip_without("pyarrow")
    return {"data_format": data_format}


SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-5, 5, (2, 3), np.float32),
    spaces.Box(-5, 5, (3,), np.int64),
    spaces.Discrete(5, start=-2),
    spaces.Dict(goal=VECTOR, more=spaces.Dict(a=spaces.Tuple([VECTOR, VECTOR]))),
    spaces.Tuple([spaces.MultiDiscrete([3, 4]), spaces.Dict(x=VECTOR), spaces.MultiBinary(2)]),
]


@pytest.mark.parametrize("data_format", FORMATS)
def test_observation_spaces(minari_root: Path, data_format: str) -> None:
    for space in SPACES:
        seen = _make(space, **need(data_format))
        data = load_trajectories("box/small-v0")
        for episode, samples in zip(data, seen, strict=True):
            is_box = isinstance(space, spaces.Box)
            flat = [np.asarray(s if is_box else flatten(space, s)) for s in samples[:-1]]
            np.testing.assert_allclose(episode.observations, flat, rtol=1e-6)
            assert episode.observations.dtype == np.float32
        shutil.rmtree(minari_root / "box")


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("jpeg", [True, False])
def test_frames_stay_bytes(minari_root: Path, jpeg: bool, data_format: str) -> None:
    for space in (FRAME, spaces.Box(0, 255, (33, 40), np.uint8)):
        # Smooth frames, so that JPEG is nearly lossless.
        ramp = np.linspace(0, 255, space.shape[1])
        frame = np.broadcast_to(ramp.reshape(1, -1, *[1] * (len(space.shape) - 2)), space.shape)
        seen = [np.stack([frame * (step + 1) / 9 for step in range(n + 1)]) for n in LENGTHS]
        seen = [frames.astype(np.uint8) for frames in seen]
        actions = [np.array(samples) for samples in _episodes(ACTIONS, 0)]
        episodes = [
            {"observations": frames, "actions": taken}
            for frames, taken in zip(seen, actions, strict=True)
        ]
        options = {"jpeg_encoding": jpeg, **need(data_format)}
        write_minari("frames-v0", space, ACTIONS, episodes, **options)
        data = load_trajectories("frames-v0")
        assert data.observations.dtype == np.uint8
        expected = np.concatenate([frames[:-1] for frames in seen])
        difference = np.abs(data.observations.astype(int) - expected)
        assert difference.max() <= (6 if jpeg else 0)
        shutil.rmtree(minari_root / "frames-v0")


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_dataset_object_and_its_selection(data_format: str) -> None:
    _make(VECTOR, **need(data_format))
    dataset = minari.load_dataset("box/small-v0")
    assert load_trajectories(dataset).lengths.tolist() == LENGTHS
    chosen = dataset.filter_episodes(lambda episode: len(episode.rewards) > 1)
    assert load_trajectories(chosen).rewards.tolist() == [0, 1, 2, 20, 21, 22, 23]


def test_a_folder_anywhere_that_cannot_be_written(
    minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(VECTOR)
    folder = tmp_path / "elsewhere"
    shutil.move(minari_root / "box" / "small-v0", folder)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path)
    for source in (folder, str(folder), "elsewhere", folder / "data"):
        assert load_trajectories(source).lengths.tolist() == LENGTHS
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not (tmp_path / "home").exists()
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(VECTOR)
    monkeypatch.setenv("SB3_DMAMBA_OFFLINE", "1")
    cases = {
        "box/smal-v0": "near names there: box/small-v0): give the right path, download it with",
        "mujoco/hopper/medium-v0": "there are box/small-v0): give",
        "box/small": "near names there: box/small-v0); names of Minari's end in a version",
        "dqn-replay/Breakout": "there is no file or folder 'dqn-replay/Breakout' in ",
    }
    for asked, message in cases.items():
        error = refusal(asked)
        assert (error.value, error.choices) == (asked, ("box/small-v0",))
        assert message in str(error)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nowhere"))
    assert refusal("mujoco/hopper/medium-v0").choices == ()
    assert not (tmp_path / "nowhere").exists()


def test_the_package_that_registers_an_environment_is_named(minari_root: Path) -> None:
    _make(VECTOR, env="CartPole-v1")
    far = {"id": "Far-v0", "entry_point": "no_such_package.envs:Far", "kwargs": {"size": 2}}
    _edit(minari_root, env_spec=json.dumps(far))
    data = load_trajectories("box/small-v0")  # without importing the package
    assert (data.env_id, data.env_kwargs) == ("no_such_package:Far-v0", {"size": 2})


def test_wrappers_that_cannot_be_rebuilt_are_told(minari_root: Path) -> None:
    env = gymnasium.wrappers.ClipReward(gymnasium.make("CartPole-v1"), 0, 1)
    assert env.spec is not None
    _make(VECTOR)
    _edit(minari_root, env_spec=env.spec.to_json())
    with pytest.warns(UserWarning, match="CartPole-v1 through .*ClipReward") as caught:
        data = load_trajectories("box/small-v0")
    assert caught[0].filename == __file__
    assert (data.env_id, data.env_kwargs) == (None, {})


def _edit(root: Path, **changes: Any) -> None:
    """Change the metadata of "box/small-v0"; None takes a key out."""
    file = root / "box" / "small-v0" / "data" / "metadata.json"
    metadata = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


BAD_METADATA: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"data_format": "zarr"}, {"setting": "data_format", "value": "zarr"}),
    ({"total_episodes": 0}, {"path": "data"}),
    ({"total_episodes": 4}, {"path": "main_data.hdf5", "setting": "episode_3"}),
    ({"observation_space": None}, {"setting": "observation_space"}),
    ({"observation_space": '{"type": "Cube"}'}, {"setting": "observation_space"}),
    ({"action_space": "not JSON"}, {"setting": "action_space", "value": "not JSON"}),
    ({"env_spec": "[]"}, {"path": "metadata.json", "setting": "env_spec"}),
    *(
        ({"total_episodes": count}, {"setting": "total_episodes", "value": count})
        for count in ("3", -1, 2.5, True)
    ),
]


def test_bad_metadata(minari_root: Path) -> None:
    _make(VECTOR)
    file = minari_root / "box" / "small-v0" / "data" / "metadata.json"
    whole, wrong = file.read_bytes(), []
    for changes, expected in BAD_METADATA:
        _edit(minari_root, **changes)
        wrong += unlike(changes, refusal("box/small-v0"), expected)
        file.write_bytes(whole)
    assert not wrong, "\n".join(wrong)


NAN = np.array([[0, 0], [0, np.nan], [0, 0], [0, 0], [0, 0]])


BAD_EPISODES: list[tuple[str, Any, dict[str, Any]]] = [
    ("rewards", None, {"setting": "rewards"}),
    ("rewards", np.zeros(0), {"setting": "rewards"}),
    ("rewards", np.zeros((4, 1)), {"setting": "rewards", "value": (4, 1)}),
    ("rewards", np.array([0, 0, 0, np.inf]), {"setting": "rewards", "episode": 2, "index": 7}),
    ("observations", None, {"setting": "observations"}),
    ("observations", np.zeros((3, 2)), {"setting": "observations"}),
    ("observations", np.zeros((5, 3)), {"setting": "observations", "value": (4, 3)}),
    ("observations", np.zeros((5, 2, 1)), {"said": "frame 0 is not an image"}),
    ("observations", NAN, {"setting": "observations", "episode": 2, "index": 5}),
    ("actions", np.zeros((5, 2)), {"setting": "actions", "value": (5, 2)}),
    ("actions", np.full((4, 2), 2.0), {"setting": "actions", "episode": 2, "index": 4}),
    ("terminations", np.array([0, 1, 0, 0]), {"setting": "terminations", "index": 1}),
    ("truncations", np.zeros(3), {"setting": "truncations", "value": (3,)}),
]


def test_bad_episodes(minari_root: Path) -> None:
    _make(VECTOR)
    path, wrong = minari_root / "box" / "small-v0" / "data" / "main_data.hdf5", []
    whole = path.read_bytes()
    for key, values, expected in BAD_EPISODES:
        with h5py.File(path, "a") as file:
            del file["episode_2"][key]
            if values is not None:
                file["episode_2"][key] = values
        error = refusal("box/small-v0")
        wrong += unlike((key, values), error, {"path": path, **expected})
        path.write_bytes(whole)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("data_format", FORMATS[1:])
def test_bad_tables(minari_root: Path, data_format: str) -> None:
    _make(VECTOR, **need(data_format))
    import pyarrow as pa
    from pyarrow import feather, parquet

    folder = minari_root / "box" / "small-v0" / "data"
    assert load_trajectories(folder).lengths.tolist() == LENGTHS
    (path,) = (folder / "2").glob("part-*")
    whole, wrong = path.read_bytes(), []
    table = (feather if data_format == "arrow" else parquet).read_table(path)

    def write(changed: Any) -> None:
        if data_format == "arrow":
            feather.write_feather(changed, path, compression="uncompressed")
        else:
            parquet.write_table(changed, path)

    for key, values, expected in BAD_TABLES:
        at = table.schema.get_field_index(key)
        changed = table.remove_column(at)
        write(changed if values is None else changed.add_column(at, key, [values]))
        wrong += unlike((key, values), refusal(folder), expected)
    assert not wrong, "\n".join(wrong)
    write(table.slice(0, 1))
    assert refusal(folder).setting == "rewards"
    for damaged in (whole[: len(whole) // 2], b"", b"no table"):
        path.write_bytes(damaged)
        assert refusal(folder).path == str(path)
    write(pa.concat_tables([table.slice(0, 2), table.slice(2)]))
    assert load_trajectories(folder).lengths.tolist() == LENGTHS
    path.unlink()
    assert "download it again" in str(refusal(folder))
    _edit(minari_root, total_episodes=2)
    assert load_trajectories(folder).lengths.tolist() == LENGTHS[:2]


BAD_TABLES: list[tuple[str, Any, dict[str, Any]]] = [
    ("rewards", None, {"setting": "rewards"}),
    ("rewards", ["x"] * 5, {"setting": "rewards"}),
    ("rewards", [0.0, None, 0.0, 0.0, 0.0], {"setting": "rewards"}),
    ("rewards", [[0.0, 1.0]] * 5, {"setting": "rewards", "value": (4, 2)}),
    ("rewards", [0, 0, 0, np.inf, 0], {"setting": "rewards", "episode": 2, "index": 7}),
    ("observations", None, {"setting": "observations"}),
    ("observations", [[0.0] * 3] * 5, {"setting": "observations", "value": (4, 3)}),
    ("observations", [[0.0] * n for n in range(5)], {"setting": "observations", "index": 1}),
    ("observations", [b"no image"] * 5, {"setting": "observations"}),
    ("actions", [[0.0] * 3] * 5, {"setting": "actions", "value": (4, 3)}),
    ("actions", [[2.0, 2.0]] * 5, {"setting": "actions", "episode": 2, "index": 4}),
    ("terminations", [False, True, False, False, False], {"setting": "terminations", "index": 1}),
]


@pytest.mark.parametrize("data_format", FORMATS[1:])
def test_recorded_data_are_the_same_in_every_format(
    tmp_path: Path, data_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = find_minari_folder("sb3_dmamba/halfcheetah-v0")
    old = MinariStorage.read(original / "data")
    (tmp_path / "copy").mkdir()
    place, given = tmp_path / "copy" / "data", (old.observation_space, old.action_space)
    new = MinariStorage.new(place, *given, **need(data_format))
    keys = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    episodes = old.get_episodes(range(0, 90, 30))
    new.update_episodes(
        EpisodeBuffer(id=None, **{key: each[key] for key in keys}) for each in episodes
    )
    metadata = json.loads((place / "metadata.json").read_text())
    metadata["env_spec"] = old.metadata["env_spec"]
    (place / "metadata.json").write_text(json.dumps(metadata))
    expected = load_trajectories(original)[[0, 30, 60]]
    found = load_trajectories(tmp_path / "copy")
    assert_same(found, replace(expected, source=found.source))
    monkeypatch.setattr("sb3_dmamba.data.sources.minari.CHUNK_BYTES", 1)
    pieces = list(open_minari_folder(tmp_path / "copy").pieces())
    assert [len(piece) for piece in pieces] == [1, 1, 1]
    assert_same(join_pieces(pieces), found)


def test_damaged_files(minari_root: Path) -> None:
    _make(VECTOR)
    data = minari_root / "box" / "small-v0" / "data"
    main, metadata = data / "main_data.hdf5", data / "metadata.json"
    whole = main.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not HDF5"):
        main.write_bytes(damaged)
        assert refusal("box/small-v0").path == str(main)
    main.unlink()
    assert refusal("box/small-v0").path == str(main)
    for text in ("{", "[]"):
        metadata.write_text(text)
        assert refusal("box/small-v0").path == str(metadata)
    metadata.unlink()
    assert "has no metadata.json" in str(refusal("box/small-v0"))


def test_the_bundled_dataset_is_found_by_its_id() -> None:
    bundled = load_trajectories("sb3_dmamba/halfcheetah-v0")
    assert (len(bundled), bundled.n_steps, bundled.env_id) == (90, 90_000, "HalfCheetah-v5")
    assert bundled.source == "minari:sb3_dmamba/halfcheetah-v0"
    # What data/bundled/README.md says of the five levels.
    levels = bundled.returns.reshape(5, 18).mean(axis=1)
    assert levels == pytest.approx((1216.6, 2260.0, 3319.6, 3495.6, 4423.7), abs=0.05)


def test_d4rl_names_and_minari_ids_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = {"observations": np.zeros((2, 2)), "actions": np.zeros((1, 2))}
    write_minari("hopper-medium-v2", VECTOR, ACTIONS, [episode])
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert "/hopper_medium-v2.hdf5 and put it" in str(refusal("hopper-medium-v2", download=False))
    assert "pass its HDF5 file" in str(refusal("antmaze-umaze-v2", download=False))


class RemoteFolder:
    """A server as Minari talks to one, which is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.breaks: BaseException | None = None
        self.downloads: list[str] = []

    def list_datasets(self, prefix: str | None = None) -> Iterator[str]:
        for file in sorted(self.folder.glob("**/data/metadata.json")):
            dataset_id = file.parent.parent.relative_to(self.folder).as_posix()
            if dataset_id.startswith(prefix or ""):
                yield dataset_id

    def get_dataset_metadata(self, dataset_id: str) -> Any:
        return json.loads((self.folder / dataset_id / "data" / "metadata.json").read_text())

    def list_namespaces(self) -> list[str]:
        return ["box"]

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        (path / namespace).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / namespace / "namespace_metadata.json", path / namespace)

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        self.downloads.append(dataset_id)
        for file in sorted((self.folder / dataset_id / "data").iterdir()):
            (path / dataset_id / "data").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path / dataset_id / "data")
            if self.breaks is not None:
                raise self.breaks


@pytest.fixture
def remote(minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteFolder:
    """A server that has "box/small-v0" and its namespace, which are not here."""
    _make(VECTOR)
    shutil.move(minari_root, tmp_path / "remote")
    minari_root.mkdir()
    server = RemoteFolder(tmp_path / "remote")
    monkeypatch.setenv("MINARI_REMOTE", "gcp://anywhere")
    monkeypatch.setitem(minari.storage.remotes._registry, "gcp", lambda: lambda name, token: server)
    return server


def test_a_remote_dataset_is_downloaded_once(
    remote: RemoteFolder, minari_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert load_trajectories("box/small-v0").lengths.tolist() == LENGTHS
    assert remote.downloads == ["box/small-v0"]
    assert (minari_root / "box" / "namespace_metadata.json").is_file()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading box/small-v0" in captured.err


def test_half_a_download_goes_away(remote: RemoteFolder, minari_root: Path) -> None:
    for error in (ConnectionError("no route\nto host"), KeyboardInterrupt()):
        remote.breaks = error
        with pytest.raises((DatasetError, KeyboardInterrupt)):
            load_trajectories("box/small-v0")
        assert not (minari_root / "box" / "small-v0").exists()
    remote.breaks = None
    assert len(load_trajectories("box/small-v0")) == 3


def test_what_is_not_downloaded(
    remote: RemoteFolder, minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "(ValueError: Couldn't find any version" in str(refusal("box/none-v0"))
    for dataset_id, options in (
        ("box/small-v0", {"download": False}),
        ("box/small", {}),  # no version, so no id that a server knows
    ):
        assert "could not be downloaded" not in str(refusal(dataset_id, **options))
    monkeypatch.setenv("SB3_DMAMBA_OFFLINE", "1")
    assert "SB3_DMAMBA_OFFLINE is set" in str(refusal("box/small-v0"))
    assert not remote.downloads


def test_a_server_without_an_address_is_not_tried(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("MINARI_REMOTE", "HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(minari, "download_dataset", None)  # which tries for most of a minute
    assert "huggingface.co cannot be reached: Name or service" in str(refusal("box/none-v0"))


def test_a_package_of_minari_that_is_missing(
    remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise ImportError("google-cloud-storage is not installed")

    monkeypatch.setitem(minari.storage.remotes._registry, "gcp", fail)
    assert 'pip install "minari[hf' in str(refusal("box/small-v0"))


def test_pieces_are_the_whole(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(VECTOR)
    whole = load_trajectories("box/small-v0")
    for chunk, n_pieces in ((1, 3), (50, 2), (10_000, 1)):
        monkeypatch.setattr("sb3_dmamba.data.sources.minari.CHUNK_BYTES", chunk)
        folder = open_minari_folder(minari_root / "box/small-v0")
        for source in (open_minari_id("box/small-v0"), folder):
            found = list(source.pieces())
            assert len(found) == n_pieces
            assert_same(join_pieces(found), whole)


def test_large_datasets_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(VECTOR)
    whole = load_trajectories("box/small-v0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("sb3_dmamba.data.sources.minari.IN_MEMORY_BYTES", 50)
    for source in ("box/small-v0", minari.load_dataset("box/small-v0")):
        mapped = load_trajectories(source)
        assert isinstance(mapped.observations, np.memmap)
        np.testing.assert_array_equal(mapped.observations, whole.observations)
        assert mapped.source == whole.source
    assert [path.name for path in tmp_path.iterdir()] == ["minari"]


# id: episodes, steps, mean, std, min, max, terminated, truncated, env_id, max_episode_steps
TABLE = {
    "hopper/medium-v0": (610, 200384, 1165.8, 438.1, 614.9, 3691.0, 604, 6, "Hopper-v5", 1000),
    "hopper/medium-replay-v0": (
        *(1118, 200714, 511.4, 420.5, 3.7, 2910.7, 1118, 0, "Hopper-v5", 1000),
    ),
    "hopper/expert-v0": (103, 100131, 3502.7, 397.6, 1752.8, 3625.4, 6, 97, "Hopper-v5", 1000),
    "walker2d/medium-replay-v0": (
        *(971, 201518, 564.1, 664.2, -25.1, 4088.0, 963, 8, "Walker2d-v5", 1000),
    ),
    "pendulum/mixed-v0": (250, 50000, -666.6, 430.6, -1832.5, -0.4, 0, 250, "Pendulum-v1", 200),
    "cartpole/mixed-v0": (303, 20512, 67.7, 114.0, 10, 500, 287, 16, "CartPole-v1", 500),
}


@pytest.mark.parametrize("dataset_id", TABLE)
def test_statistics(shared_data: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    data = load_trajectories(dataset_id)
    summary = data.summary()
    found = (
        summary.episodes,
        summary.steps,
        *(round(getattr(summary.returns, name), 1) for name in ("mean", "std", "min", "max")),
        summary.terminated,
        summary.truncated,
        data.env_id,
        data.env_kwargs["max_episode_steps"],
    )
    assert found == TABLE[dataset_id]
    assert summary.cut == 0


def test_counts_that_are_unknown_or_written_as_floats(minari_root: Path) -> None:
    _make(VECTOR)
    whole = load_trajectories("box/small-v0")
    file = minari_root / "box" / "small-v0" / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    for steps, episodes in ((None, 3), (float(whole.n_steps), 3.0), (None, None)):
        counts = {"total_steps": steps, "total_episodes": episodes}
        file.write_text(json.dumps({**metadata, **counts}))
        data = load_trajectories("box/small-v0")
        np.testing.assert_array_equal(data.episode_offsets, whole.episode_offsets)


def test_spaces_in_place_of_the_recorded_ones(minari_root: Path) -> None:
    _make(spaces.Dict(a=VECTOR, b=VECTOR))
    narrow = json.dumps(
        {**json.loads(serialize_space(ACTIONS)), "low": [-0.01] * 2, "high": [0.01] * 2}
    )
    recorded = load_trajectories("box/small-v0").observations
    _edit(minari_root, action_space=narrow)
    assert refusal("box/small-v0").setting == "actions"
    given: Any = {
        "observation_space": spaces.Dict([("b", VECTOR), ("a", VECTOR)]),
        "action_space": ACTIONS,
    }
    for source in (
        "box/small-v0",
        minari_root / "box" / "small-v0",
        minari.load_dataset("box/small-v0"),
    ):
        data = load_trajectories(source, **given)
        assert data.action_space == ACTIONS
        np.testing.assert_array_equal(data.observations, recorded[:, [2, 3, 0, 1]])


def test_harmless_wrappers_keep_the_environment(minari_root: Path) -> None:
    _make(VECTOR)
    env: Any = wrappers.RecordEpisodeStatistics(gymnasium.make("Pendulum-v1"))
    _edit(minari_root, env_spec=env.spec.to_json())
    data = load_trajectories("box/small-v0")
    assert (data.env_id, data.env_kwargs) == ("Pendulum-v1", {"max_episode_steps": 200})
    flattened: Any = wrappers.FlattenObservation(env)
    _edit(minari_root, env_spec=flattened.spec.to_json())
    with pytest.warns(UserWarning, match="recover_environment") as caught:
        assert load_trajectories("box/small-v0").env_id is None
    assert caught[0].filename == __file__
