"""Everything that is looked at, and what of it is broken."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import torch

import sb3_dmamba
from sb3_dmamba.doctor.backends import Backend, check_backends
from sb3_dmamba.doctor.packages import DISTRIBUTION, Package, find_packages
from sb3_dmamba.doctor.places import Place, find_places, why_no_bundled_dataset
from sb3_dmamba.doctor.speed import Speed, measure_speed
from sb3_dmamba.machine import Machine, describe_machine

__all__ = ["Examination", "examine", "find_problems"]


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
