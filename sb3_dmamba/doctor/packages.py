"""Which packages are here, by what this distribution says that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

__all__ = ["DISTRIBUTION", "Package", "find_packages"]

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
