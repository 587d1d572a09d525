"""``dmamba doctor``: packages, hardware, backends, dataset folders and speed of this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement
from stable_baselines3.common.callbacks import BaseCallback

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.d4rl import cache_folder
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.machine import Machine, describe_machine
from sb3_dmamba.ops import available_backends, causal_conv1d, explain_backends, selective_scan
from sb3_dmamba.paths import minari_folder
from sb3_dmamba.tasks import get_task

DISTRIBUTION = "sb3-dmamba"
_FOR_CONTRIBUTORS = ("dev", "docs")


@dataclass(frozen=True)
class Package:
    """A package that this one needs, always or for an extra.

    Args:
        name: As it is installed.
        needed: The versions that will do, such as ``">=1.0"``; empty for any.
        version: The one that is here; None where there is none.
        extra: The extra that asks for it; None where it is always needed.
        is_met: Whether the version that is here will do.
    """

    name: str
    needed: str
    version: str | None
    extra: str | None
    is_met: bool

    @property
    def lack(self) -> str | None:
        """What is wrong with it, in a few words that its name comes before, or None."""
        if self.is_met:
            return None
        if self.version is None:
            return "is not installed"
        return f"is {self.version}, and {self.needed} is needed"

    @property
    def remedy(self) -> str | None:
        """The line that installs what is missing, or None."""
        if self.is_met:
            return None
        if self.extra is None:
            return f'pip install "{self.name}{self.needed}"'
        return f'pip install "{DISTRIBUTION}[{self.extra}]"'


def find_packages() -> list[Package]:
    """Return what is needed and what extras ask for, those of contributors' extras left out.

    Returns:
        Needed packages first, then by extra; empty where this distribution is not installed (its
        source is merely on the path).
    """
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return []
    lines = metadata.requires(DISTRIBUTION) or []
    extras: list[str | None] = [None, *about.get_all("Provides-Extra", [])]
    return [
        package
        for extra in extras
        if extra not in _FOR_CONTRIBUTORS
        for package in _find(lines, extra)
    ]


def _find(lines: list[str], extra: str | None) -> Iterator[Package]:
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        is_always = marker is None or marker.evaluate({"extra": ""})
        if is_always != (extra is None):
            continue
        if extra is not None and (marker is None or not marker.evaluate({"extra": extra})):
            continue
        version = _find_version(requirement.name)
        is_met = version is not None and requirement.specifier.contains(version, prereleases=True)
        yield Package(requirement.name, str(requirement.specifier), version, extra, is_met)


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_TOLERANCE = 1e-4  # of sums of a few dozen numbers of size one, in float32
_BATCH, _STEPS, _CHANNELS, _STATES, _TAPS = 2, 33, 16, 8, 4
_REFERENCE = "reference"


@dataclass(frozen=True)
class Backend:
    """A backend on a kind of device.

    Args:
        name: Its name.
        device: ``"cpu"`` or ``"cuda"``.
        is_auto: Whether ``backend="auto"`` means it there.
        reason: Why it does not work there, and what to do; None where it works.
        max_error: How far its results were from the reference's; None where it did not run.
        is_broken: Whether it says that it works, and does not compute what the reference does.
    """

    name: str
    device: str
    is_auto: bool
    reason: str | None
    max_error: float | None
    is_broken: bool = False


def check_backends(device: str) -> list[Backend]:
    """Run every backend that works on a kind of device, forward and backward, on small input.

    Args:
        device: ``"cpu"`` or ``"cuda"``; there need not be one.

    Returns:
        All backends, the fastest first.
    """
    reasons = explain_backends(device)
    auto = available_backends(device)[0] if None in reasons.values() else None
    found = []
    for name, reason in reasons.items():
        error, is_broken = None, False
        if reason is None:
            try:
                error = _compare(name, device)
                is_broken = not error <= _TOLERANCE
                if is_broken:
                    reason = f"its results are off by {error:.1e}: use another backend, and report"
            except Exception as failure:  # a kernel may fail in any way; the others still count
                lines = str(failure).strip().splitlines() or [""]
                reason = f"it fails ({type(failure).__name__}: {lines[0]}): use another backend"
                is_broken = True
        found.append(Backend(name, device, name == auto, reason, error, is_broken))
    return found


def _compare(name: str, device: str) -> float:
    ours, theirs = _run(name, device), _run(_REFERENCE, device)
    differences = [(a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]
    return float(max(differences, key=lambda value: (value != value, value)))  # NaN is the worst


def _run(name: str, device: str) -> list[torch.Tensor]:
    """Return an output and a gradient of each operation."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u = draw(_BATCH, _STEPS, _CHANNELS).requires_grad_()
    weight = draw(_CHANNELS, _TAPS).requires_grad_()
    convolved = causal_conv1d(u, weight, activation="silu", backend=name)
    step = torch.nn.functional.softplus(draw(_BATCH, _STEPS, _CHANNELS))
    rates = -torch.exp(draw(_CHANNELS, _STATES))
    ins, outs = draw(_BATCH, _STEPS, _STATES), draw(_BATCH, _STEPS, _STATES)
    scanned = selective_scan(convolved, step, rates, ins, outs, backend=name)
    gradients = torch.autograd.grad(scanned.square().mean(), (u, weight))
    return [convolved.detach(), scanned.detach(), *gradients]


BUNDLED_TASK = "hopper-bundled"
_GIB = 1024**3


@dataclass(frozen=True)
class Place:
    """A folder of datasets.

    Args:
        what: What lies there.
        path: The folder, which need not be there yet.
        setting: The environment variable that names another.
        n_datasets: How many there are.
        is_writable: Whether a dataset could be put there.
        free_gib: Room on its disk.
    """

    what: str
    path: str
    setting: str
    n_datasets: int
    is_writable: bool
    free_gib: float


def find_places() -> list[Place]:
    """Look at the folders that datasets are downloaded to."""
    return [
        _look_at("Minari", minari_folder(), "MINARI_DATASETS_PATH", "**/data/main_data.hdf5"),
        _look_at("D4RL", cache_folder(), "D4RL_DATASET_DIR", "*.hdf5"),
    ]


def why_no_bundled_dataset() -> str | None:
    """Say why the dataset inside the package cannot be read; None where it can."""
    try:
        load_trajectories(get_task(BUNDLED_TASK).dataset)
    except (DecisionMambaError, OSError) as error:
        return f"the dataset inside the package cannot be read ({error}): install it again"
    return None


def _look_at(what: str, path: Path, setting: str, pattern: str) -> Place:
    there = path
    while not there.exists():
        there = there.parent
    return Place(
        what=what,
        path=str(path),
        setting=setting,
        n_datasets=sum(1 for _ in path.glob(pattern)),
        is_writable=os.access(there, os.W_OK),
        free_gib=round(shutil.disk_usage(there).free / _GIB, 1),
    )


_WARM_UPS = 3  # updates before the clock starts: kernels are compiled, or a graph is recorded
_ENDLESS = 10**9


@dataclass(frozen=True)
class Speed:
    """What was measured, a second.

    Args:
        task: Whose network and data it was.
        device: Where.
        threads: Threads of the CPU.
        first_update_seconds: What the first update took, compiling included.
        updates: Updates with these threads.
        updates_on_one_thread: Updates with one; None where that is the same, or on a GPU.
        window_steps: Steps of acting in window memory, one environment, its window full.
        stream_steps: Likewise in stream memory.
    """

    task: str
    device: str
    threads: int
    first_update_seconds: float
    updates: float
    updates_on_one_thread: float | None
    window_steps: float
    stream_steps: float


def measure_speed(seconds: float, device: str = "auto") -> Speed:
    """Train and act on the bundled dataset's recipe for a few seconds.

    Args:
        seconds: In all, about; starting up comes on top.
        device: As ``DecisionMamba`` takes it.
    """
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
            _, alone = _time_updates(model, trajectories, share)
        finally:
            torch.set_num_threads(threads)
    return Speed(
        task=BUNDLED_TASK,
        device=str(model.device),
        threads=threads,
        first_update_seconds=first,
        updates=updates,
        updates_on_one_thread=alone,
        window_steps=_time_acting(model, "window", share),
        stream_steps=_time_acting(model, "stream", share),
    )


class _Clock(BaseCallback):
    """Ends a training after some seconds, and knows how fast it was."""

    def __init__(self, seconds: float, wait: Callable[[], None]) -> None:
        super().__init__()
        self.seconds = seconds
        self.wait = wait
        self.n_updates = 0
        self.first = self.begun = self.elapsed = 0.0

    def _on_training_start(self) -> None:
        self.begun = time.perf_counter()

    def _on_step(self) -> bool:
        self.n_updates += 1
        if self.n_updates <= _WARM_UPS:
            self.wait()
            if self.n_updates == 1:
                self.first = time.perf_counter() - self.begun
            self.begun = time.perf_counter()
            return True
        self.elapsed = time.perf_counter() - self.begun
        if self.elapsed < self.seconds:
            return True
        self.wait()  # until what was only sent to a GPU is done
        self.elapsed = time.perf_counter() - self.begun
        return False


def _time_updates(
    model: DecisionMamba, trajectories: Trajectories, seconds: float
) -> tuple[float, float]:
    """Return the seconds of the first update, and the updates a second of later ones."""
    clock = _Clock(seconds, _waiting_for(model.device))
    model.fit(trajectories, _ENDLESS, callback=clock, log_interval=_ENDLESS)
    return clock.first, (clock.n_updates - _WARM_UPS) / clock.elapsed


def _time_acting(model: DecisionMamba, memory: Memory, seconds: float) -> float:
    """Return the steps a second, of one environment whose window is full."""
    space = model.policy.observation_space
    seen = {
        "observation": np.zeros((1, *space.shape), space.dtype),
        "return_to_go": np.full((1, 1), 1000.0, np.float32),
    }
    state = model.policy.initial_state(1, memory)
    for _ in range(model.config.context_length + 1):
        _, state = model.predict(seen, state)
    n_steps, begun = 0, time.perf_counter()
    while True:
        _, state = model.predict(seen, state)  # its actions are on the CPU: nothing is left to do
        n_steps += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds:
            return n_steps / elapsed


def _waiting_for(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass(frozen=True)
class Examination:
    """What was found.

    Args:
        version: Of this package.
        machine: What computes here.
        packages: What is needed and what extras ask for.
        backends: Of the operations, on the CPU and on CUDA.
        places: Folders of datasets.
        speed: What a few seconds of it achieve; None where nobody asked.
        problems: What is broken, and what to do about it; an extra that is missing is none.
    """

    version: str
    machine: Machine
    packages: list[Package]
    backends: list[Backend]
    places: list[Place]
    speed: Speed | None
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            **dataclasses.asdict(self),
            "packages": [
                {**dataclasses.asdict(each), "lack": each.lack, "remedy": each.remedy}
                for each in self.packages
            ],
        }


def examine(seconds: float = 10.0, device: str = "auto") -> Examination:
    """Look at everything, and run it for a few seconds.

    Args:
        seconds: Of the speed check; 0 leaves it out.
        device: Where it is checked.
    """
    packages = find_packages()
    backends = check_backends("cpu") + check_backends("cuda")
    no_data = why_no_bundled_dataset()
    problems = [*find_problems(packages, backends), *([no_data] if no_data else [])]
    speed = None
    if seconds > 0 and no_data is None:
        try:
            speed = measure_speed(seconds, device)
        except Exception as error:  # whatever it is, it is what the doctor was asked about
            problems.append(f"training and acting fail ({type(error).__name__}: {error})")
    return Examination(
        version=sb3_dmamba.__version__,
        machine=describe_machine(),
        packages=packages,
        backends=backends,
        places=find_places(),
        speed=speed,
        problems=problems,
    )


def find_problems(packages: list[Package], backends: list[Backend]) -> list[str]:
    """Return what is broken by itself: packages, backends, the driver; and what to do."""
    problems = []
    if not packages:
        problems.append(f'{DISTRIBUTION} is not installed: pip install -e ".[dev]" in its folder')
    problems += [
        f"{package.name} {package.lack}: {package.remedy}"
        for package in packages
        if package.extra is None and not package.is_met
    ]
    problems += [
        f"backend {each.name!r} on {each.device!r}: {each.reason}"
        for each in backends
        if each.is_broken
    ]
    if not any(each.is_auto for each in backends if each.device == "cpu"):
        problems.append("no backend works on the CPU")
    if torch.version.cuda is not None and not torch.cuda.is_available() and _has_driver():
        problems.append(
            f"there is an NVIDIA driver, and torch, built for CUDA {torch.version.cuda}, finds no "
            f"GPU: nvidia-smi shows the driver's version, and pip install torch with a fitting "
            f"--index-url brings a fitting build"
        )
    return problems


def _has_driver() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    finished = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False, timeout=30)
    return finished.returncode == 0 and bool(finished.stdout.strip())
