"""Hugging Face datasets with a row an episode: what is read, in pieces or whole, and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from typer.testing import CliRunner

from sb3_dmamba.cli import app
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.sources import huggingface
from sb3_dmamba.data.sources.huggingface import Table, open_rows
from sb3_dmamba.errors import DatasetError, MissingDependencyError
from tests.data.builders import assert_same, import_datasets, refusal, skip_without, to_png, unlike

pa = skip_without("pyarrow")
Rows = dict[str, list[Any]]
LENGTHS = (3, 2, 4)


def make_rows(n_observations: int = 11, n_actions: int = 3) -> Rows:
    """Three episodes: one that fell, one that no flag ends, and the last, likewise."""
    generator = np.random.default_rng(0)

    def draw(size: int) -> list[Any]:
        values = generator.uniform(-1, 1, (sum(LENGTHS), size)).astype(np.float32)
        return [part.tolist() for part in np.split(values, np.cumsum(LENGTHS)[:-1])]

    rewards = [np.arange(length, dtype=np.float32).tolist() for length in LENGTHS]
    dones = [[False, False, True], [False, False], [False] * 4]
    columns = {"observations": draw(n_observations), "actions": draw(n_actions)}
    return {**columns, "rewards": rewards, "dones": dones}


def write(path: Path, rows: Rows, **options: Any) -> Path:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(rows), path, **options)
    return path


def check(
    data: Trajectories, rows: Rows, truncated: tuple[bool, ...] = (False, True, False)
) -> None:
    assert data.lengths.tolist() == list(LENGTHS)
    for key in ("observations", "actions", "rewards"):
        expected = np.concatenate([np.float32(row) for row in rows[key]])
        np.testing.assert_array_equal(getattr(data, key), expected)
    assert data.terminated.tolist() == [True, False, False]
    assert data.truncated.tolist() == list(truncated)


def test_ends_of_rows(tmp_path: Path) -> None:
    rows = make_rows()
    ends = {"dones": rows.pop("dones")}
    last = [[step == length - 1 for step in range(length)] for length in LENGTHS]
    fell, ran_out = ends["dones"], [[False] * 3, [False, True], [False] * 4]
    first = [[step == 0 for step in range(length)] for length in LENGTHS]
    texts = [["x"] * length for length in LENGTHS]
    usual, whole = (False, True, False), (False, True, True)
    cases: list[tuple[Rows, dict[str, Any], tuple[bool, ...]]] = [
        (ends, {}, usual),
        (ends, {"max_episode_steps": 4}, whole),
        ({"terminals": [[[flag] for flag in row] for row in fell]}, {}, usual),
        ({"terminated": fell, "truncated": ran_out}, {}, usual),
        ({"dones": last, "timeouts": [*ran_out[:2], last[2]]}, {}, whole),
        ({**ends, "is_first": first, "is_last": last, "done_reason": texts}, {}, usual),
    ]
    for flags, options, truncated in cases:
        data = load_trajectories(write(tmp_path / "a.parquet", {**rows, **flags}), **options)
        check(data, rows, truncated)


def test_pieces_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    path = write(tmp_path / "hopper-medium-v2.parquet", rows, row_group_size=2)
    whole = load_trajectories(path)
    check(whole, rows)
    assert (whole.env_id, whole.source) == ("Hopper-v4", f"huggingface:{path}")
    for module in ("huggingface", "arrow"):
        monkeypatch.setattr(f"sb3_dmamba.data.sources.{module}.CHUNK_BYTES", 1)
    pieces = list(open_rows(path).pieces())
    assert [piece.lengths.tolist() for piece in pieces] == [[3], [2], [4]]
    assert {piece.env_id for piece in pieces} == {"Hopper-v4"}
    monkeypatch.setattr(huggingface, "IN_MEMORY_BYTES", 0)
    assert_same(load_trajectories(path), whole)


def test_objects_and_what_is_saved_of_them(tmp_path: Path) -> None:
    datasets, rows = import_datasets(), make_rows()
    dataset = datasets.Dataset.from_dict(rows)
    dataset.info.dataset_name, dataset.info.config_name = "gym_replay", "hopper-medium-v2"
    data = load_trajectories(dataset)
    check(data, rows)
    assert (data.env_id, data.source) == ("Hopper-v4", "huggingface:gym_replay/hopper-medium-v2")
    chosen = load_trajectories(dataset.select([2, 0]).with_format("torch"))
    assert chosen.lengths.tolist() == [4, 3]
    np.testing.assert_array_equal(chosen.observations, data.observations[[5, 6, 7, 8, 0, 1, 2]])
    both = datasets.DatasetDict(train=dataset, test=dataset.select([0]))
    both.save_to_disk(tmp_path / "both")
    dataset.to_parquet(tmp_path / "shards" / "data" / "train-00000-of-00002.parquet")
    dataset.to_parquet(tmp_path / "shards" / "data" / "test-00000-of-00001-0a1b.parquet")
    sources = (both, tmp_path / "both", tmp_path / "shards")
    for source in sources:
        check(load_trajectories(source, split="train"), rows)
        for split in (None, "tran"):
            expected = {"setting": "split", "value": split, "choices": ("train", "test")}
            error = refusal(source, split=split)
            assert sorted(error.choices) == ["test", "train"]
            assert not unlike(source, error, {**expected, "choices": error.choices})
    stream = dataset.to_iterable_dataset()
    for source in (stream, datasets.IterableDatasetDict(train=stream)):
        assert refusal(source).setting == "source"
    assert refusal(dataset.select([])).setting == "source"


def test_parts_and_images(tmp_path: Path) -> None:
    datasets = import_datasets()
    rows = make_rows()
    frames = np.random.default_rng(0).integers(0, 256, (9, 6, 8, 3), np.uint8)
    seen = np.split(frames, np.cumsum(LENGTHS)[:-1])
    features = datasets.Features(
        observations=datasets.List(datasets.Array3D((6, 8, 3), "uint8")),
        images=datasets.List(datasets.Image()),
        actions=datasets.Array2D((None, 3), "float32"),
        rewards=datasets.List(datasets.Value("float64")),
        dones=datasets.List(datasets.Value("bool")),
    )
    columns = {
        **rows,
        "observations": list(seen),
        "images": [[to_png(frame) for frame in part] for part in seen],
    }
    table = datasets.Dataset.from_dict(columns, features=features)
    pictures = table.remove_columns("observations").rename_column("images", "observations")
    for source in (table.remove_columns("images"), pictures):
        data = load_trajectories(source)
        np.testing.assert_array_equal(data.observations, frames)
        assert data.observation_space == spaces.Box(0, 255, (6, 8, 3), np.uint8)
        assert data.action_space == spaces.Box(-1, 1, (3,))
    # a list of structs, one a step, and a struct of lists
    box = spaces.Box(-1, 1, (2,), np.float32)
    space = spaces.Dict([("b", box), ("a", spaces.Discrete(3))])
    parts = [{"a": [1] * n, "b": [[0.5, -0.5]] * n, "unread": [0] * n} for n in LENGTHS]
    steps = [[{"a": 1, "b": [0.5, -0.5]}] * n for n in LENGTHS]
    for observations in (parts, steps):
        path = write(tmp_path / "parts.parquet", {**rows, "observations": observations})
        data = load_trajectories(path, observation_space=space)
        assert data.observations.tolist() == [[0.5, -0.5, 0, 1, 0]] * 9
        assert refusal(path).setting == "observation_space"
    numbered = [[{"0": [0.5, -0.5], "1": 1}] * n for n in LENGTHS]
    path = write(tmp_path / "tuple.parquet", {**rows, "observations": numbered})
    both = spaces.Tuple([box, spaces.Discrete(3)])
    assert load_trajectories(path, observation_space=both).observations[0].tolist() == (
        [0.5, -0.5, 0, 1, 0]
    )


def test_discrete_actions_and_given_spaces(tmp_path: Path) -> None:
    rows = make_rows()
    for actions in ([[0, 1, 2], [1, 1], [0] * 4], [[[0], [1], [2]], [[1], [1]], [[0]] * 4]):
        path = write(tmp_path / "a.parquet", {**rows, "actions": actions})
        data = load_trajectories(path)
        assert data.action_space == spaces.Discrete(3)
        assert data.actions.tolist() == [0, 1, 2, 1, 1, 0, 0, 0, 0]
        error = refusal(path, action_space=spaces.Discrete(2))
        assert (error.setting, error.value, error.episode) == ("actions", 2, 0)
    wide = {**rows, "actions": [[[5.0] * 3] * n for n in LENGTHS]}
    assert refusal(write(tmp_path / "a.parquet", wide)).setting == "action_space"
    box = spaces.Box(-9, 9, (3,), np.float32)
    assert load_trajectories(tmp_path / "a.parquet", action_space=box).action_space == box


def changed(key: str, row: int, value: Any) -> Rows:
    rows = make_rows()
    rows[key][row] = value
    return rows


def renamed(key: str, other: str) -> Rows:
    return {other if name == key else name: values for name, values in make_rows().items()}


WRONG: list[tuple[Rows, dict[str, Any]]] = [
    (renamed("rewards", "reward"), {"setting": "rewards", "said": "rename 'reward' to 'rewards'"}),
    (renamed("observations", "obs"), {"setting": "observations"}),
    (renamed("dones", "Done"), {"setting": "terminals"}),
    (make_rows() | {"timeout": [[0]] * 3}, {"setting": "timeout", "choices": ("timeouts",)}),
    (changed("rewards", 1, [0.0]), {"setting": "dones", "episode": 1, "value": (2,)}),
    (changed("rewards", 1, []), {"setting": "rewards", "episode": 1}),
    (changed("actions", 2, [[0.0] * 3]), {"setting": "actions", "episode": 2, "value": (1, 3)}),
    (changed("observations", 1, [[0.0] * 11]), {"setting": "observations", "episode": 1}),
    (changed("observations", 2, [[0.0] * 7] * 4), {"setting": "observations", "episode": 2}),
    (changed("observations", 2, [[0.0] * n for n in range(8, 12)]), {"episode": 2}),
    (changed("dones", 0, [True, False, True]), {"setting": "dones", "episode": 0, "index": 0}),
    (changed("dones", 2, [False, None, False, False]), {"setting": "dones", "episode": 2}),
    (changed("dones", 2, None), {"setting": "dones", "episode": 2}),
    (changed("rewards", 2, [0.0, 1.0, np.nan, 0.0]), {"setting": "rewards", "index": 7}),
    (make_rows() | {"rewards": [["x"] * n for n in LENGTHS]}, {"setting": "rewards", "episode": 0}),
    (make_rows() | {"actions": [["x"] * n for n in LENGTHS]}, {"setting": "actions", "episode": 0}),
    (make_rows() | {"actions": [[{"x": 1}] * n for n in LENGTHS]}, {"setting": "actions"}),
    (
        make_rows() | {"is_last": [[True] * n for n in LENGTHS]},
        {"setting": "is_last", "episode": 0},
    ),
    (make_rows() | {"observations": [[b"no image"] * n for n in LENGTHS]}, {"episode": 0}),
    (
        {key: values[0] for key, values in make_rows().items()},
        {"setting": "rewards", "said": "dict"},
    ),
    ({key: pa.array([], pa.list_(pa.float32())) for key in make_rows()}, {"said": "no row"}),
]


def test_wrong_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "CHUNK_BYTES", 1)
    wrong = []
    for rows, expected in WRONG:
        path = write(tmp_path / "a.parquet", rows)
        wrong += unlike(expected, refusal(path), {"path": path, **expected})
        pieces = None if "episode" not in expected else _refused_piece(path)
        if pieces is not None and pieces != expected["episode"]:
            wrong.append(f"{expected}: in pieces it is episode {pieces}")
    assert not wrong, "\n".join(wrong)
    assert refusal(path, splt="train").choices[0] == "split"
    assert refusal(path, max_episode_steps=0).setting == "max_episode_steps"


def _refused_piece(path: Path) -> int | None:
    with pytest.raises(DatasetError) as caught:
        list(open_rows(path).pieces())
    return caught.value.episode


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", make_rows())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"not Parquet"):
        path.write_bytes(damaged)
        assert refusal(path).path == str(path)
    datasets = import_datasets()
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(make_rows()).save_to_disk(folder)
    (shard,) = folder.glob("*.arrow")
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"not Arrow"):
        shard.write_bytes(damaged)
        assert refusal(folder).path == str(shard)
    # an offset that points outside of the file: at the start of row 1's rewards
    offsets = np.array([0, 3, 5, 9], np.int32).tobytes()
    assert offsets in whole
    shard.write_bytes(whole.replace(offsets, np.array([0, 3, 10**9, 9], np.int32).tobytes()))
    assert refusal(folder).path == str(shard)
    shard.unlink()
    assert refusal(folder).path == str(shard)
    state = folder / "state.json"
    for text in ("{", "[]", '{"_data_files": [{"filename": "../x"}]}', '{"_data_files": []}'):
        state.write_text(text)
        assert str(folder) in str(refusal(folder))
    state.unlink()
    assert "state.json" in str(refusal(folder))


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "hopper.parquet", make_rows())

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    given = ("--option", "env_id=Hopper-v5", "--json")
    summary = run("data", "info", "hopper.parquet", *given)["summary"]
    assert (summary["episodes"], summary["env_id"]) == (3, "Hopper-v5")
    run("data", "convert", "hopper.parquet", "store", *given)
    check(load_trajectories(tmp_path / "store"), make_rows())


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", make_rows())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_trajectories(path)
    assert (caught.value.package, caught.value.extra) == ("pyarrow", "hub")


def test_paths_need_no_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", make_rows())
    code = (
        "import sys, sb3_dmamba; sb3_dmamba.load_trajectories(sys.argv[1]);"
        "assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=240)


def test_fewer_rows_at_a_second_reading_are_refused() -> None:
    table = Table("x", None, Path(), ["rewards", "actions"], lambda columns: iter(()))
    with pytest.raises(DatasetError) as caught:
        next(table.steps([2], "actions"))
    assert (caught.value.episode, caught.value.setting) == (0, "rewards")
