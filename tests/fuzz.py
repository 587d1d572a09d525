"""Damage the files that the package reads, and check what reading them gives.

``python -m tests.fuzz --seconds 600`` damages a sound file of each kind at random, and by known
tricks (bombs, huge declared sizes, pickles that call functions). A worker
process with less than 1 GB of memory reads it. The outcome must be a :class:`DecisionMambaError`,
the value of the sound file, or, where no checksum covers the change, another valid value. A crash,
another exception, a minute without an answer, or anything executed is a fault.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from sb3_dmamba import DecisionMamba, load_trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.networks import DecisionMambaPolicy
from tests.data.builders import flat_arrays, write_hdf5
from tests.data.dqn_files import Played, Recorder
from tests.models import tiny_model
from tests.toys import random_trajectories

Trick = Callable[[Path], object]  # damages a sound file

MEMORY_BYTES = 1 << 30
CPU_SECONDS_A_CASE = 60.0  # an hour of the clock, on a machine that does much else
MARKER = Path("executed")  # what the malicious files would make, in the worker's folder
_HUGE = 1 << 40


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        write: Writes a sound one, ``path``: a file or a folder.
        read: Has the package read it; returns all that it holds.
        tricks: Write damaged ones over a sound one; the first lines of their docstrings, or their
            names, say how.
        has_checksums: Whether every byte of the values is covered by a checksum.
    """

    name: str
    write: Trick
    read: Callable[[Path], dict[str, Any]]
    tricks: list[Trick]
    has_checksums: bool


# --- Random damage -------------------------------------------------------------------------------


def damage(content: bytes, rng: random.Random) -> bytes:
    """Change bytes: half the time near an end, where formats keep their structure."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        size = len(data)
        near = min(size, 512)
        place = rng.choice(
            (rng.randrange(size + 1), rng.randrange(near + 1), size - rng.randrange(near + 1))
        )
        length = rng.choice((1, 2, 4, 8, rng.randrange(size + 1)))
        how = rng.randrange(8)
        if how <= 1:
            for each in range(place, min(size, place + rng.choice((1, 1, 4)))):
                data[each] ^= 1 << rng.randrange(8) if how else rng.randrange(1, 256)
        elif how == 2:
            del data[place:]
        elif how == 3:
            del data[place : place + length]
        elif how == 4:
            data[place:place] = data[place : place + length]
        elif how == 5:
            data[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
        elif how == 6:
            value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            width = rng.choice((2, 4, 8))
            data[place : place + width] = (value % 256**width).to_bytes(width, "little")
        elif numbers := list(re.finditer(rb"-?\d+", data[:8192])):
            found = rng.choice(numbers)
            values = (
                b"-1",
                b"0",
                b"1e999",
                b"NaN",
                b"999999999",
                b"9" * 19,
                b"1" + b"0" * 300,
                b"null",
                b'"x"',
                b"[]",
            )
            data[found.start() : found.end()] = rng.choice(values)
        else:
            data = data[::-1]
    return bytes(data)


def open_envelope(content: bytes) -> dict[str, bytes]:
    """Return what a zip or gzip holds; empty for anything else."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return {"": gzip.decompress(content)} if content.startswith(b"\x1f\x8b") else {}


def seal_envelope(parts: dict[str, bytes]) -> bytes:
    """Return a gzip of one part without a name, or a zip, both with correct checksums."""
    if "" in parts:
        return gzip.compress(parts[""], 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def mutate(path: Path, rng: random.Random) -> bool:
    """Damage a file, or one in a folder; return whether no checksum can tell."""
    files = sorted(each for each in [path, *path.rglob("*")] if each.is_file())
    file, other = rng.choice(files), rng.choice(files)
    content = file.read_bytes()
    parts = open_envelope(content) if rng.random() < 0.5 else {}
    if parts:
        name, second = rng.choice(sorted(parts)), rng.choice(sorted(parts))
        if name != second and rng.random() < 0.2:
            parts[name], parts[second] = parts[second], parts[name]
        else:
            parts[name] = damage(parts[name], rng)
        file.write_bytes(seal_envelope(parts))
        return True
    if len(files) > 1 and rng.random() < 0.05:
        file.unlink()
        return True
    if file != other and rng.random() < 0.05:
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return True
    file.write_bytes(damage(content, rng))
    return file.suffix == ".json"  # a text without any


# --- Known tricks --------------------------------------------------------------------------------


def inflates(n_mib: int, window_bits: int, prefix: bytes = b"") -> bytes:
    """Return a deflated prefix and zeros, in a thousandth of their size; the checksum is wrong."""
    zeros, packer = bytes(1 << 20), zlib.compressobj(9, zlib.DEFLATED, window_bits)
    head = packer.compress(prefix) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * n_mib + packer.flush()


class Call:
    """Pickled, it has a function called."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def malicious() -> list[Call]:
    """Return what makes the marker where an unpickler runs code."""
    python = f"__import__('pathlib').Path('{MARKER}').touch()"
    shell = f"touch {MARKER}"
    return [
        *(
            Call(os.system, shell),
            Call(eval, python),
            Call(exec, python),
            Call(os.mkdir, str(MARKER)),
        ),
        *(Call(subprocess.check_call, ["touch", str(MARKER)]), Call(open, str(MARKER), "w")),
        *(Call(functools.partial(os.system, shell)), Call(np.save, str(MARKER), 0)),
    ]


def npy(shape: tuple[int, ...], dtype: str, version: int = 1, length: int | None = None) -> bytes:
    """Return the header of an ``.npy`` file."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def edit_zip(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    parts = open_envelope(path.read_bytes())
    change(parts)
    path.write_bytes(seal_envelope(parts))


def edit_json(path: Path, *keys: str, value: Any) -> None:
    """Set a field of a JSON file, or of a model file's header."""
    is_zip = path.suffix == ".zip"
    parts = open_envelope(path.read_bytes()) if is_zip else {"model.json": path.read_bytes()}
    document = json.loads(parts["model.json"])
    inner = functools.reduce(lambda fields, key: fields[key], keys[:-1], document)
    inner[keys[-1]] = value
    parts["model.json"] = json.dumps(document).encode()
    path.write_bytes(seal_envelope(parts) if is_zip else parts["model.json"])


def sets(*keys: str, value: Any, file: str = "") -> Trick:
    """Return a trick that sets a field of JSON."""
    return lambda path: edit_json(path / file if file else path, *keys, value=value)


def discrete(number: Any) -> dict[str, Any]:
    """Return a Discrete space of so many actions as a model file has it."""
    return {"type": "Discrete", "n": str(number), "start": "0"}


def replaces(content: bytes, *names: str) -> Trick:
    """Return a trick that replaces a file of a folder, a member of a zip, or the file itself."""

    def trick(path: Path) -> object:
        if names and path.is_file():
            edit_zip(path, lambda parts: parts.update(dict.fromkeys(names, content)))
            return None
        return [(path / name).write_bytes(content) for name in names or ("",)]

    return trick


def zip_bomb(path: Path) -> None:
    """A member of each zip is deflated, 2 MB for 2 GB."""
    raw, parts = inflates(2048, -15), open_envelope(path.read_bytes())
    name = next(name for name in parts if name.endswith((".safetensors", "data/0")))
    with zipfile.ZipFile(path, "w") as archive:
        for each, part in {**parts, name: raw}.items():
            archive.writestr(each, part)
        info = archive.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, 2 << 30


def zip_sizes(path: Path) -> None:
    """The directory of a zip declares members of 2^40 bytes."""
    parts = open_envelope(path.read_bytes())
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        for info in archive.filelist:
            info.file_size = info.compress_size = _HUGE


def zip_overlap(path: Path) -> None:
    """Ten thousand members of a zip are the same bytes."""
    parts = open_envelope(path.read_bytes())
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        archive.filelist += archive.filelist[-1:] * 10_000


def policy_calls(number: int) -> Trick:
    def trick(path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        torch.save({**saved, "state_dict": malicious()[number]}, path)

    return trick


def pickles(value: Any, protocol: int = 4) -> Trick:
    """Return a trick that pickles an object in place of the rewards."""

    def trick(path: Path) -> object:
        contents = pickle.loads(path.read_bytes())
        contents[0]["rewards"] = value
        return path.write_bytes(pickle.dumps(contents, protocol))

    return trick


def shared_lists() -> Any:
    """Ten to the ninth numbers in a hundred references."""
    value: Any = [0.0] * 10
    for _ in range(8):
        value = [value] * 10
    return value


def own_item() -> Any:
    value: list[Any] = []
    value += [value, value]
    return value


def hdf5(change: Callable[[h5py.Group], object]) -> Trick:
    """Return a trick that changes an HDF5 file: its arrays, or those of Minari's first episode."""

    def trick(path: Path) -> object:
        with h5py.File(path if path.is_file() else path / "data/main_data.hdf5", "r+") as file:
            return change(file.get("episode_0", file))

    return trick


def declares(key: str, shape: tuple[int, ...], dtype: str = "f4", **options: Any) -> Any:
    """Return a trick: an array of a huge shape without contents."""

    def change(group: h5py.Group) -> None:
        del group[key]
        group.create_dataset(key, shape, dtype, chunks=True, **options)

    return hdf5(change)


def chunk(key: str, inner: bool = False, **options: Any) -> Any:
    """Return a trick: a chunk that inflates to 4 GB, whatever size is declared; or one of twice."""

    def change(group: h5py.Group) -> None:
        shape, dtype = group[key].shape, group[key].dtype
        del group[key]
        filters = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        for _ in range(1 + inner):
            filters.set_deflate(9)
        filters.set_chunk(options.get("chunks", shape))
        made = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        kind = h5py.h5t.py_create(dtype)
        node = h5py.Dataset(h5py.h5d.create(group.id, key.encode(), kind, made, filters))
        raw = inflates(4096, 15)
        raw = zlib.compress(raw, 9) if inner else raw
        node.id.write_direct_chunk((0,) * len(shape), raw)

    return hdf5(change)


def links(make: Callable[[], Any]) -> Any:
    def change(group: h5py.Group) -> None:
        del group["rewards"]
        group["rewards"] = make()

    return hdf5(change)


def external(group: h5py.Group) -> None:
    """The rewards lie in another file."""
    shape = group["rewards"].shape
    del group["rewards"]
    group.create_dataset("rewards", shape, "u1", external=[("/etc/hostname", 0, shape[0])])


def virtual(group: h5py.Group) -> None:
    """The rewards are a view of another file."""
    layout = h5py.VirtualLayout(group["rewards"].shape, "f4")
    layout[:] = h5py.VirtualSource(str(MARKER), "rewards", group["rewards"].shape)
    del group["rewards"]
    group.create_virtual_dataset("rewards", layout)


def many_steps(path: Path) -> None:
    """Every array is honest: 2^23 steps of zeros in 0.1 MB."""
    with h5py.File(path, "w") as file:
        rows = 1 << 20
        for key, dtype, row in (
            ("rewards", "f4", ()),
            ("observations", "f4", (1,)),
            ("actions", "f4", (1,)),
            ("terminals", "u1", ()),
        ):
            made = file.create_dataset(
                key, (rows << 3, *row), dtype, chunks=(rows, *row), compression="gzip"
            )
            raw = zlib.compress(bytes(rows * made.dtype.itemsize), 9)
            for first in range(0, rows << 3, rows):
                made.id.write_direct_chunk((first, *(0 for _ in row)), raw)


def huge_frame(path: Path) -> None:
    """An image of 400 million pixels, in a dataset of images of 64."""
    edit_json(
        path / "data/metadata.json",
        "observation_space",
        value=json.dumps(
            {
                "type": "Box",
                "dtype": "uint8",
                "shape": [8, 8, 1],
                "low": np.zeros((8, 8, 1)).tolist(),
                "high": np.full((8, 8, 1), 255).tolist(),
            }
        ),
    )
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(buffer, "png")
    frame = np.frombuffer(buffer.getvalue(), np.uint8)
    with h5py.File(path / "data/main_data.hdf5", "r+") as file:
        for group in file.values():
            n_frames = len(group["observations"])
            del group["observations"]
            group["observations"] = np.repeat(frame[None], n_frames, 0)


def sparse(name: str, shape: tuple[int, ...], dtype: str) -> Trick:
    """Return a trick: a file of a store as long as its header says, without contents."""

    def trick(path: Path) -> None:
        header = npy(shape, dtype)
        (path / f"{name}.npy").write_bytes(header)
        os.truncate(
            path / f"{name}.npy", len(header) + int(np.prod(shape)) * np.dtype(dtype).itemsize
        )

    return trick


def all_of(*tricks: Trick) -> Trick:
    return lambda path: [trick(path) for trick in tricks]


def member(name: str, content: bytes) -> Trick:
    """Return a trick that replaces a file of the DQN replay."""
    return replaces(
        content, f"$store$_{name}_ckpt.0.gz" if name != "add_count" else "add_count_ckpt.0.gz"
    )


# --- Sound files and tables ----------------------------------------------------------------------


def read_data(path: Path, **options: Any) -> dict[str, Any]:
    data = load_trajectories(path, **options)
    return {**vars(data), "summary": repr(data.summary())}


def read_store(path: Path) -> dict[str, Any]:
    read_data(path)
    return read_data(path, verify=True)


def read_model(path: Path) -> dict[str, Any]:
    model = DecisionMamba.load(path)
    shown = {
        "observation": np.zeros((1, 3), np.float32),
        "return_to_go": np.ones((1, 1), np.float32),
    }
    with contextlib.suppress(DecisionMambaError):  # of other weights
        model.predict(shown)
    return {
        "config": model.config,
        **_weights(model.policy),
        **{f"moment {k}": v for k, v in (model._updater.state() if model._updater else {}).items()},
    }


def read_policy(path: Path) -> dict[str, Any]:
    policy = DecisionMambaPolicy.load(path)
    return {"config": policy.config, **_weights(policy)}


def _weights(policy: DecisionMambaPolicy) -> dict[str, Any]:
    return {name: each.numpy() for name, each in policy.state_dict().items()}


def write_model(path: Path) -> None:
    tiny_model(n_updates=2).fit(random_trajectories()).save(path)


def write_policy(path: Path) -> None:
    tiny_model(n_updates=1).fit(random_trajectories()).policy.save(path)


def write_store(path: Path) -> None:
    random_trajectories((40, 30)).save(path)


def write_d4rl(path: Path) -> None:
    write_hdf5(path, flat_arrays(), compression="gzip")


def write_pickle(path: Path) -> None:
    arrays = flat_arrays()
    bounds = (0, 4, 9)
    episodes = [
        {key: values[first:last] for key, values in arrays.items() if key != "timeouts"}
        for first, last in itertools.pairwise(bounds)
    ]
    path.write_bytes(pickle.dumps(episodes, 4))


def write_dqn(path: Path) -> None:
    recorder = Recorder(path, 60)
    for seed, length in enumerate((20, 15, 10)):
        recorder.play(Played.random(length, seed))
    recorder.write()


def write_minari(path: Path) -> None:
    from tests.data import builders

    data = random_trajectories()
    episodes = [
        {
            "observations": np.concatenate([each.observations, each.observations[:1]]),
            "actions": each.actions,
            "rewards": each.rewards,
        }
        for each in data
    ]
    os.environ["MINARI_DATASETS_PATH"] = str(path.parent / "recorded")
    builders.write_minari("fuzz-v0", data.observation_space, data.action_space, episodes)
    shutil.move(path.parent / "recorded" / "fuzz-v0", path)


NESTED = b"[" * 200_000
HEADERS = [  # of .npy files: too long, nested too deeply, objects, and shapes of no array
    npy((3,), "<f4", version=2, length=2**32 - 1) + bytes(1 << 16),
    b"\x93NUMPY\x02\0" + struct.pack("<I", 5000) + b"(" * 5000,
    b"\x93NUMPY\x01\0" + struct.pack("<H", 5000) + b"-" * 5000,
    npy((3,), "|O") + b"cos\nsystem\n(S'touch executed'\ntR.",
    *(npy(shape, "<f4") for shape in ((-1,), (2**62, 2**62), (0, 2**62, 2**62))),
]
SIZES: tuple[Any, ...] = (10**9, 10**15, 10**300, -1, 0, 1.5, "9", None, True, [], float("inf"))


def sizes(*fields: str, file: str = "") -> list[Trick]:
    """Return tricks that set fields of JSON, each given as its path, to :data:`SIZES`."""
    return [sets(*field.split("."), value=value, file=file) for field in fields for value in SIZES]


ZIPS: list[Trick] = [zip_bomb, zip_sizes, zip_overlap]
MODELS = [
    *ZIPS,
    *(replaces(pickle.dumps(each), "data.pkl", "policy.safetensors") for each in malicious()),
    *(replaces(text, "model.json") for text in (NESTED, b"1" * 10_000)),
    replaces(struct.pack("<Q", _HUGE) + b"{}", "policy.safetensors"),
    replaces(struct.pack("<Q", 200_000) + NESTED, "policy.safetensors"),
    *sizes("config.hidden_size", "config.n_layers", "config.context_length", "config.d_state"),
    *sizes("config.max_timestep", "config.n_updates", "counters.num_timesteps", "seed"),
    *sizes("observation_space.shape", "action_space.shape", "action_space.low"),
    *(sets("observation_space", "shape", value=shape) for shape in ([10**9], [10**5, 10**5], [-3])),
    *(sets("action_space", value=discrete(number)) for number in SIZES),
]
POLICIES = [*ZIPS, *(policy_calls(number) for number in range(len(malicious())))]
HEADER = "trajectories.json"
STORES = [
    *(replaces(each, f"{name}.npy") for each in HEADERS for name in ("rewards", "terminated")),
    replaces(NESTED, HEADER),
    *sizes("n_steps", "n_episodes", "frame_stack", "observation_space.shape", file=HEADER),
    sets("observation_space", "shape", value=[10**9], file=HEADER),
    all_of(sparse("rewards", (_HUGE,), "<f4"), sets("n_steps", value=_HUGE, file=HEADER)),
    all_of(sparse("terminated", (1 << 33,), "|b1"), sets("n_episodes", value=1 << 33, file=HEADER)),
]
ELSEWHERE = (("/etc/hostname", "/"), (str(MARKER), "/rewards"))
HDF5 = [
    *(declares(key, (1 << 44,)) for key in ("rewards", "observations")),
    declares("actions", (1 << 20, 1 << 20, 16)),
    declares("rewards", (1 << 28,), "S16"),
    *(chunk(key) for key in ("rewards", "observations", "actions")),
    chunk("rewards", inner=True),
    chunk("rewards", chunks=(1 << 29,)),
    *(links(functools.partial(h5py.SoftLink, name)) for name in ("rewards", "/")),
    *(links(functools.partial(h5py.ExternalLink, *place)) for place in ELSEWHERE),
    hdf5(external),
    hdf5(virtual),
]
METADATA = "data/metadata.json"
SPACES = (
    json.dumps({"type": "Discrete", "n": 10**300, "start": 0}),
    json.dumps({"type": "MultiBinary", "n": [10**6, 10**6]}),
    '{"type": "Tuple", "subspaces": ' * 5000,
)
MINARI = [
    *HDF5,
    huge_frame,
    replaces(NESTED, METADATA),
    *(sets("observation_space", value=space, file=METADATA) for space in SPACES),
    *sizes("total_episodes", "total_steps", "env_spec", "data_format", file=METADATA),
]
ZEROS = (  # of 2^28 rows
    *(("observation", "|u1", (1 << 28, 2, 3)), ("action", "<i4", (1 << 28,))),
    *(("reward", "<f4", (1 << 28,)), ("terminal", "|u1", (1 << 28,))),
)
REPLAYS = [
    *(
        member(name, content)
        for name in ("observation", "action", "add_count")
        for content in (
            *(gzip.compress(header) for header in HEADERS),
            *(inflates(4096, 31), inflates(4096, 31, b"\x93NUMPY\2\0\xff\xff\xff\xff")),
        )
    ),
    member("observation", inflates(3600, 31, npy((60, 8000, 7800), "|u1"))),
    member("action", inflates(2048, 31, npy((60,), "<i4"))),
    member("add_count", inflates(2048, 31, npy((), "<i8"))),
    all_of(*(member(name, inflates(2048, 31, npy(shape, kind))) for name, kind, shape in ZEROS)),
]
ODD: tuple[Any, ...] = (10**5000, [10**5000], [[1], [2, 3]], ["a" * 1000] * 1000, {1: 2}, None)
PICKLES = [
    *(pickles(each, protocol) for each in malicious() for protocol in (0, 2, 4)),
    *(pickles(each) for each in (shared_lists(), own_item(), [None] * 9, bytearray(9), *ODD)),
    *(
        replaces(b"\x80\x04" + opcodes)
        for opcodes in (
            b"}N" + b"\x85" * 1_000_000 + b"Ns.",  # a tuple in a tuple ... as a key
            b"}(N" + b"N\x86" * 500_000 + b"Nu.",
            b"\x8f(N\x94" + b"h\0h\0\x86\x940" * 2 + b"h\0" + b"N\x86" * 500_000 + b"\x90.",
            b"]" + b"]a" * 1000 + b"a" * 1000 + b".",
            b"](" * 300_000 + b"e" * 300_000 + b".",
            b"\x8e" + struct.pack("<Q", _HUGE) + b"x.",  # bytes of a huge length
            b"\x8b\xff\xff\xff\x7f\x01.",
        )
    ),
    replaces(b"(lp0\nr\xff\xff\xff\x7f."),  # a huge index of the memo
    replaces(b"I" + b"9" * 100_000 + b"\n."),
]

KINDS = [
    Kind("model.zip", write_model, read_model, MODELS, True),
    Kind("policy.pt", write_policy, read_policy, POLICIES, True),
    Kind("store", write_store, read_store, STORES, True),
    Kind("d4rl.hdf5", write_d4rl, read_data, [*HDF5, many_steps], False),
    Kind("minari", write_minari, read_data, MINARI, False),
    Kind("dqn", write_dqn, functools.partial(read_data, game="Breakout"), REPLAYS, True),
    Kind("episodes.pkl", write_pickle, read_data, PICKLES, False),
]


# --- The worker ----------------------------------------------------------------------------------

_WATCHED = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "pickle.find_class", "pty.spawn", "ctypes.dlopen"),
}


def digest(values: dict[str, Any]) -> str:
    """Return a hash of all values: of arrays, dtype, shape and bytes."""
    found = hashlib.sha256()
    for name, value in sorted(values.items()):
        is_array = isinstance(value, (np.ndarray, torch.Tensor))
        array = np.asarray(value) if is_array else np.zeros(0)
        found.update(repr((name, array.dtype, array.shape) if is_array else (name, value)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def work(seed: int) -> None:
    """Read lines of a kind's number and a case's, and write the outcome of each as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    executed: list[str] = []
    is_reading = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_reading and event in _WATCHED:
            executed.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        sound: dict[str, str] = {}
        for line in sys.stdin:
            number, case = map(int, line.split())
            kind = KINDS[number]
            original, path = (
                Path("sound", kind.name).absolute(),
                Path("damaged", kind.name).absolute(),
            )
            if kind.name not in sound:
                original.parent.mkdir(exist_ok=True)
                kind.write(original)
                path.parent.mkdir(exist_ok=True)
                (shutil.copytree if original.is_dir() else shutil.copy)(original, path)
                sound[kind.name] = digest(kind.read(path))
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (shutil.copytree if original.is_dir() else shutil.copy)(original, path)
            rng = random.Random(f"{seed} {kind.name} {case}")
            is_unnoticed = True
            if case % 2 == 0 and case // 2 < len(kind.tricks):
                kind.tricks[case // 2](path)
            else:
                is_unnoticed = mutate(path, rng)
            executed.clear()
            is_reading, start = True, time.process_time()
            signal.setitimer(
                signal.ITIMER_PROF, CPU_SECONDS_A_CASE
            )  # whose signal ends the process
            try:
                found = digest(kind.read(path))
            except DecisionMambaError as error:
                outcome, said = "refused", f"{type(error).__name__}: {error}"
                causes: BaseException | None = error
                while causes is not None:
                    outcome = "no memory" if isinstance(causes, MemoryError) else outcome
                    causes = causes.__cause__ or causes.__context__
            except BaseException as error:
                import traceback

                outcome, said = "FAULT", "".join(traceback.format_exception(error)[-3:])
            else:
                same = found == sound[kind.name]
                other = "FAULT" if kind.has_checksums and not is_unnoticed else "other"
                outcome, said = ("same", "") if same else (other, "another value")
            is_reading, seconds = False, time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
            if executed or MARKER.exists():
                outcome, said = "FAULT", f"executed: {executed or MARKER}"
                shutil.rmtree(MARKER, ignore_errors=True)
                MARKER.unlink(missing_ok=True)
            print(json.dumps([outcome, said, seconds, read_peak()]), flush=True)


def read_peak() -> int:
    """Return the most memory that this process has held, in MiB."""
    # getrusage counts what the parent held when it started this process
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


# --- The driver ----------------------------------------------------------------------------------


class Worker:
    """A process that reads damaged files, replaced when it dies."""

    def __init__(self, seed: int) -> None:
        self._seed, self._process = seed, self._start(seed)

    @staticmethod
    def _start(seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.fuzz", "--work", "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=environment, **pipes)

    def run(self, kind: int, case: int) -> tuple[str, str, float, int]:
        """Return outcome, message, seconds, and the worker's peak memory in MiB."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{kind} {case}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 60 * CPU_SECONDS_A_CASE)
        line = process.stdout.readline() if ready else ""
        if line:
            outcome, said, seconds, peak = json.loads(line)
            return outcome, said, seconds, peak
        process.kill()
        status = process.wait()
        self._process = self._start(self._seed)
        return "FAULT", f"the process ended with status {status}", 0.0, 0

    def stop(self) -> None:
        self._process.communicate()


def cases(
    only: str | None, first: int, times: int | None, seconds: float
) -> Iterator[tuple[int, int]]:
    """Yield kind and case: a hundred of each kind in turn, until enough or out of time."""
    end = time.monotonic() + seconds
    chosen = [number for number, kind in enumerate(KINDS) if only in (None, kind.name)]
    last = float("inf") if times is None else first + times
    while first < last:
        until = int(min(first + 100, last))
        for kind in chosen:
            for case in range(first, until):
                if time.monotonic() > end:
                    return
                yield kind, case
        first = until


def fuzz(
    *,
    seed: int,
    only: str | None = None,
    first: int = 0,
    times: int | None = None,
    seconds: float = 600.0,
    verbose: bool = False,
) -> tuple[dict[str, collections.Counter[str]], list[str], int]:
    """Return the outcomes of each kind, the faults, and the peak of memory in MiB."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults, peak, worker = list[str](), 0, Worker(seed)
    for number, case in cases(only, first, times, seconds):
        outcome, said, took, memory = worker.run(number, case)
        name, peak = KINDS[number].name, max(peak, memory)
        counts[name][outcome] += 1
        if outcome == "FAULT":
            faults.append(f"{name} {case}: {said}")
        if verbose or outcome == "FAULT" or took > 5:
            print(f"{name} {case}: {outcome}, {took:.2f} s, {said:.1500}", flush=True)
    worker.stop()
    return counts, faults, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="when to stop")
    parser.add_argument("--times", type=int, help="files of each kind; until --seconds by default")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        choices=[kind.name for kind in KINDS],
        metavar="KIND",
        help=", ".join(kind.name for kind in KINDS),
    )
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.seed)
    chosen = {
        name: getattr(options, name)
        for name in ("seed", "only", "first", "times", "seconds", "verbose")
    }
    counts, faults, peak = fuzz(**chosen)
    for name, outcomes in counts.items():
        listed = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"{name:14} {sum(outcomes.values()):7,} files: {listed}")
    print(f"{len(faults)} faults; peak memory {peak} MiB")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
