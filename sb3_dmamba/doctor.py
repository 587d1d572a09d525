"""``dmamba doctor``: packages, hardware, backends, dataset folders and speed of this machine."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.markers import Marker
from packaging.requirements import Requirement
from stable_baselines3.common.callbacks import BaseCallback

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.d4rl import cache_folder
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.io import minari_folder
from sb3_dmamba.machine import Machine, describe_machine, measure_products
from sb3_dmamba.ops import available_backends, causal_conv1d, explain_backends, selective_scan
from sb3_dmamba.tasks import get_task

DISTRIBUTION, BUNDLED_TASK = "sb3-dmamba", "halfcheetah-bundled"


@dataclass(frozen=True)
class Examination:
    """Result of every check; ``dmamba doctor`` prints each field as a table."""

    version: str
    machine: Machine
    packages: list[Package]  # required ones, and those of extras
    backends: list[Backend]
    places: list[Place]
    speed: Speed | None  # None if it was not measured
    problems: list[str]  # a missing extra is none

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        found = dataclasses.asdict(self)
        for each, package in zip(found["packages"], self.packages, strict=True):
            each |= {"lack": package.lack, "remedy": package.remedy}
        return found


def examine(seconds: float = 10.0, device: str = "auto") -> Examination:
    """Run every check."""
    packages = find_packages()
    backends = check_backends("cpu") + check_backends("cuda")
    problems = find_problems(packages, backends)
    speed = None
    if (unreadable := why_no_bundled_dataset()) is not None:
        problems.append(unreadable)
    elif seconds > 0:
        try:
            speed = measure_speed(seconds, device)
        except Exception as error:  # any failure at all is a finding
            problems.append(f"training and acting fail ({type(error).__name__}: {error})")
    about = sb3_dmamba.__version__, describe_machine()
    return Examination(*about, packages, backends, find_places(), speed, problems)


def find_problems(packages: list[Package], backends: list[Backend]) -> list[str]:
    """Return what is broken among packages, backends and the NVIDIA driver, and how to mend it."""
    problems = []
    if not packages:
        problems.append(f'{DISTRIBUTION} is not installed: pip install -e ".[dev]" in its folder')
    unmet = [each for each in packages if each.extra is None and not each.is_met]
    problems += [f"{each.name} {each.lack}: {each.remedy}" for each in unmet]
    broken = [each for each in backends if each.is_broken]
    problems += [f"backend {b.name!r} on {b.device!r}: {b.reason}" for b in broken]
    if not any(each.is_auto for each in backends if each.device == "cpu"):
        problems.append("no backend works on the CPU")
    return problems + _driver_problems()


@dataclass(frozen=True)
class Package:
    """A package that this one needs, always or for an extra."""

    name: str
    needed: str  # such as ">=1.0"; empty for any
    version: str | None  # the installed one
    extra: str | None  # that asks for it; None where it is always needed
    is_met: bool

    @property
    def lack(self) -> str | None:
        """What is wrong with it, to follow its name, or None."""
        if self.is_met:
            return None
        if self.version is None:
            return "is not installed"
        return f"is {self.version}, and {self.needed} is needed"

    @property
    def remedy(self) -> str | None:
        """The command that installs what is missing, or None."""
        if self.is_met:
            return None
        if self.extra is None:
            return f'pip install "{self.name}{self.needed}"'
        command = f'pip install "{DISTRIBUTION}[{self.extra}]"'
        if self.extra == "cuda" and shutil.which("nvcc") is None:
            return f"{command} builds with nvcc, which is not here; nothing needs it"
        return command


_FOR_CONTRIBUTORS = ("test", "dev", "docs")


def find_packages() -> list[Package]:
    """Return the packages that are needed or that extras ask for, except contributors' extras."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    extras: list[str | None] = [None, *about.get_all("Provides-Extra", [])]
    pairs = itertools.product((e for e in extras if e not in _FOR_CONTRIBUTORS), requirements)
    return [_look_up(each, extra) for extra, each in pairs if _is_of_extra(each.marker, extra)]


def _is_of_extra(marker: Marker | None, extra: str | None) -> bool:
    if marker is None or marker.evaluate({"extra": ""}):
        return extra is None
    return extra is not None and marker.evaluate({"extra": extra})


def _look_up(requirement: Requirement, extra: str | None) -> Package:
    version, is_met = None, False
    try:
        version = metadata.version(requirement.name)
        is_met = requirement.specifier.contains(version, prereleases=True)
    except metadata.PackageNotFoundError:
        pass
    return Package(requirement.name, str(requirement.specifier), version, extra, is_met)


_TOLERANCE = 1e-4  # of sums of a few dozen numbers of size one, in float32
_BATCH, _STEPS, _CHANNELS, _STATES, _TAPS = 2, 33, 16, 8, 4


@dataclass(frozen=True)
class Backend:
    """A backend on a kind of device."""

    name: str
    device: str
    is_auto: bool  # backend="auto" picks it there
    reason: str | None  # why it does not work there, and what to do
    max_error: float | None  # from the reference; None where it did not run
    is_broken: bool = False  # available, and it fails or computes something else


def check_backends(device: str) -> list[Backend]:
    """Run every available backend, forward and backward, on small input."""
    reasons = explain_backends(device)
    auto = available_backends(device)[0] if None in reasons.values() else None
    found = []
    for name, reason in reasons.items():
        error, is_broken = None, False
        if reason is None:
            try:
                pairs = zip(_run(name, device), _run("reference", device), strict=True)
                differences = [(a - b).abs().max().item() for a, b in pairs]
                error = float(np.max(differences))  # NaN where there is one
                is_broken = not error <= _TOLERANCE
                if is_broken:
                    reason = f"its results are off by {error:.1e}: use another backend, and report"
            except Exception as failure:  # a kernel may fail in any way; the others still count
                lines = str(failure).strip().splitlines() or [""]
                reason = f"it fails ({type(failure).__name__}: {lines[0]}): use another backend"
                is_broken = True
        found.append(Backend(name, device, name == auto, reason, error, is_broken))
    return found


def _run(name: str, device: str) -> list[torch.Tensor]:
    """Return an output and a gradient of each operation."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u = draw(_BATCH, _STEPS, _CHANNELS).requires_grad_()
    weight = draw(_CHANNELS, _TAPS).requires_grad_()
    convolved = causal_conv1d(u, weight, activation="silu", backend=name)
    step = torch.nn.functional.softplus(draw(_BATCH, _STEPS, _CHANNELS))
    A = -torch.exp(draw(_CHANNELS, _STATES))
    B, C = draw(_BATCH, _STEPS, _STATES), draw(_BATCH, _STEPS, _STATES)
    scanned = selective_scan(convolved, step, A, B, C, backend=name)
    gradients = torch.autograd.grad(scanned.square().mean(), (u, weight))
    return [convolved.detach(), scanned.detach(), *gradients]


def _driver_problems() -> list[str]:
    is_blind = torch.version.cuda is not None and not torch.cuda.is_available()
    if not is_blind or shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False, timeout=30)
    message = (
        f"there is an NVIDIA driver, and torch, built for CUDA {torch.version.cuda}, finds no GPU: "
        f"nvidia-smi shows the driver's version, and pip install torch with a fitting --index-url "
        f"brings a fitting build"
    )
    return [message] if listed.returncode == 0 and listed.stdout.strip() else []


@dataclass(frozen=True)
class Place:
    """A folder of datasets."""

    what: str
    path: str
    setting: str  # environment variable that names another folder
    n_datasets: int
    is_writable: bool
    free_gib: float


def find_places() -> list[Place]:
    """Return the folders that datasets are downloaded to."""
    minari = minari_folder(), "MINARI_DATASETS_PATH", "**/data/metadata.json"
    d4rl = cache_folder(), "D4RL_DATASET_DIR", "*.hdf5"
    return [_describe_folder("Minari", *minari), _describe_folder("D4RL", *d4rl)]


def _describe_folder(what: str, path: Path, setting: str, pattern: str) -> Place:
    existing = path
    while not existing.exists():
        existing = existing.parent
    free_gib = round(shutil.disk_usage(existing).free / 1024**3, 1)
    n_datasets, is_writable = len(list(path.glob(pattern))), os.access(existing, os.W_OK)
    return Place(what, str(path), setting, n_datasets, is_writable, free_gib)


def why_no_bundled_dataset() -> str | None:
    """Return why the dataset inside the package cannot be read; None where it can."""
    try:
        load_trajectories(get_task(BUNDLED_TASK).dataset)
    except (DecisionMambaError, OSError) as error:
        return f"the dataset inside the package cannot be read ({error}): install it again"
    return None


_WARM_UPS = 3  # updates before timing: kernels are compiled, or a graph is recorded
_ENDLESS = 10**9


@dataclass(frozen=True)
class Speed:
    """Speed of training and acting on this machine."""

    task: str
    device: str
    threads: int
    first_update_seconds: float
    updates: float  # a second
    updates_on_one_thread: float | None  # a second; None with one thread, or on a GPU
    window_steps: float  # of acting a second, one environment, full window
    stream_steps: float
    products: dict[str, float]  # GFLOP a second on the CPU in fp32 and bf16


def measure_speed(seconds: float, device: str = "auto") -> Speed:
    """Train and act on the bundled dataset's recipe for a few seconds."""
    trajectories = load_trajectories(get_task(BUNDLED_TASK).dataset)
    model = DecisionMamba(BUNDLED_TASK, seed=0, device=device)
    threads = torch.get_num_threads()
    compares = model.device.type == "cpu" and threads > 1
    share = seconds / (4 if compares else 3)
    first, updates = _time_updates(model, trajectories, share)
    alone = None
    if compares:
        torch.set_num_threads(1)
        try:
            on_one = DecisionMamba(BUNDLED_TASK, seed=0, device=device)
            _, alone = _time_updates(on_one, trajectories, share)
        finally:
            torch.set_num_threads(threads)
    window, stream = _time_acting(model, "window", share), _time_acting(model, "stream", share)
    where = BUNDLED_TASK, str(model.device), threads
    return Speed(*where, first, updates, alone, window, stream, measure_products())


class _Timer(BaseCallback):
    """Times updates, and ends training after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.n_updates = 0
        self.first = self.begun = self.elapsed = 0.0

    def _on_training_start(self) -> None:
        self.begun = time.perf_counter()

    def _on_step(self) -> bool:
        self.n_updates += 1
        is_warm = self.n_updates > _WARM_UPS
        if is_warm and time.perf_counter() - self.begun < self.seconds:
            return True
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.elapsed = time.perf_counter() - self.begun
        if is_warm:
            return False
        if self.n_updates == 1:
            self.first = self.elapsed
        self.begun = time.perf_counter()
        return True


def _time_updates(
    model: DecisionMamba, trajectories: Trajectories, seconds: float
) -> tuple[float, float]:
    """Return the seconds of the first update, and later updates per second."""
    timer = _Timer(seconds)
    model.fit(trajectories, _ENDLESS, callback=timer, log_interval=_ENDLESS)
    return timer.first, (timer.n_updates - _WARM_UPS) / timer.elapsed


def _time_acting(model: DecisionMamba, memory: Memory, seconds: float) -> float:
    """Return steps per second of one environment whose window is full."""
    space = model.policy.flat_space
    seen = {
        "observation": np.zeros((1, *space.shape), space.dtype),
        "return_to_go": np.full((1, 1), 1000.0, np.float32),
    }
    state = model.policy.initial_state(1, memory)
    for _ in range(model.config.context_length + 1):
        _, state = model.predict(seen, state)
    n_steps, elapsed, begun = 0, 0.0, time.perf_counter()
    while not n_steps or elapsed < seconds:
        _, state = model.predict(seen, state)  # returns actions on the CPU, so it has finished
        n_steps, elapsed = n_steps + 1, time.perf_counter() - begun
    return n_steps / elapsed
