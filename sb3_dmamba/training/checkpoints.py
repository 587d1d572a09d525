"""The model file: a zip of JSON and safetensors, written atomically, read without unpickling."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from sb3_dmamba.atomic import write_atomically
from sb3_dmamba.errors import ModelFileError

__all__ = [
    "FORMAT_VERSION",
    "ModelFile",
    "optimizer_from_tensors",
    "optimizer_to_tensors",
]

FORMAT_VERSION = 1
_HEADER = "model.json"
_HEADER_FOR_OTHERS = "data"  # where the hub's tools look in Stable-Baselines3's files; never read
# What reading a damaged zip, JSON or safetensors can raise; ValueError and RuntimeError have the
# decoders', NotImplementedError and RecursionError below them.
_DAMAGE = (
    zipfile.BadZipFile,
    SafetensorError,
    ValueError,
    RuntimeError,
    LookupError,
    EOFError,
    OSError,
    OverflowError,
    MemoryError,
)
_NAMED = 3  # models beside a path where there is none
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # AdamW's, of each parameter


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Args:
        header: JSON-compatible description: config, task, spaces, counters.
        tensors: Groups of named tensors; each becomes one safetensors member.
    """

    header: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def write(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the file; whatever goes wrong, a file already at ``path`` stays whole.

        Args:
            path: Where to write; folders on the way are made. Or an open binary file.

        Raises:
            OSError: The place cannot be written to.
        """
        if not isinstance(path, (str, os.PathLike)):
            path.write(self._to_bytes())
            return
        write_atomically(Path(path), self._to_bytes())

    def _to_bytes(self) -> bytes:
        header = {"format_version": FORMAT_VERSION, **self.header}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            description = json.dumps(header, indent=2, allow_nan=False)
            archive.writestr(_HEADER, description)
            archive.writestr(_HEADER_FOR_OTHERS, description)
            for group, tensors in self.tensors.items():
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                archive.writestr(f"{group}.safetensors", dump_tensors(contiguous))
        return buffer.getvalue()

    @classmethod
    def read(cls, path: str | os.PathLike[str] | BinaryIO) -> ModelFile:
        """Read a model file; ``.zip`` is added where the path alone names no file.

        Args:
            path: Path or open binary file.

        Raises:
            ModelFileError: The file is missing, not a model file, damaged, or was written by a
                newer version.
            OSError: The file may not be opened.
        """
        if not isinstance(path, (str, os.PathLike)):
            return cls._from_stream(path, f"the model in {path!r}")
        source, zipped = Path(path), Path(f"{os.fspath(path)}.zip")
        if not source.is_file() and zipped.is_file():
            source = zipped
        if not source.is_file():
            other = "" if source.suffix == ".zip" else f" (nor {zipped})"
            raise ModelFileError(
                f"there is no model file at {source}{other}{_models_near(source)}", path=source
            )
        with source.open("rb") as file:
            return cls._from_stream(file, str(source), source)

    @classmethod
    def _from_stream(cls, stream: BinaryIO, name: str, path: Path | None = None) -> ModelFile:
        try:
            with zipfile.ZipFile(stream) as archive:
                return cls._from_archive(archive, name, path)
        except ModelFileError:
            raise
        except _DAMAGE as error:
            raise ModelFileError(
                f"{name} is not a whole sb3_dmamba model file ({error}): it was cut off, changed, "
                f"or written by something else; use another copy or an earlier checkpoint",
                path=path,
            ) from error

    @classmethod
    def _from_archive(cls, archive: zipfile.ZipFile, name: str, path: Path | None) -> ModelFile:
        if _HEADER not in archive.namelist():
            raise ModelFileError(
                f"{name} has no {_HEADER}, so it is not an sb3_dmamba model file: "
                f"{_whose(archive)}",
                path=path,
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ModelFileError(
                f"{name} has compressed members, which no sb3_dmamba model file has (they could "
                f"grow to any size): use the file as it was saved",
                path=path,
            )
        header = json.loads(archive.read(_HEADER))
        if not isinstance(header, dict):
            raise ModelFileError(f"{_HEADER} of {name} is not a JSON object", path=path)
        version = header.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise ModelFileError(
                f"{name} has format version {version!r}, and this sb3_dmamba reads 1 to "
                f"{FORMAT_VERSION}: upgrade with pip install -U sb3-dmamba",
                path=path,
                setting="format_version",
                value=version,
                choices=range(1, FORMAT_VERSION + 1),
            )
        tensors = {
            member.removesuffix(".safetensors"): load_tensors(archive.read(member))
            for member in archive.namelist()
            if member.endswith(".safetensors")
        }
        return cls(header, tensors)


def optimizer_to_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and step counts as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def optimizer_from_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`optimizer_to_tensors` returned.

    Raises:
        ModelFileError: The tensors belong to another model.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        is_known = index.isdecimal() and int(index) < len(parameters) and name in _MOMENTS
        if not is_known:
            raise ModelFileError(
                f"the optimiser state has an entry {key!r} for no parameter", setting=key
            )
        shape = torch.Size() if name == "step" else parameters[int(index)].shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise ModelFileError(
                f"the optimiser state {key!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"and its parameter's {tuple(shape)}",
                setting=key,
                value=tuple(tensor.shape),
                choices=[tuple(shape)],
            )
        state.setdefault(int(index), {})[name] = tensor
    for index_, entries in state.items():
        if entries.keys() != _MOMENTS:
            missing = ", ".join(sorted(_MOMENTS - entries.keys()))
            raise ModelFileError(f"the optimiser state of parameter {index_} lacks {missing}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _models_near(source: Path) -> str:
    """Name the newest files that may be meant by a path where there is no model."""
    folder = source if source.is_dir() else source.parent
    try:
        models = sorted(folder.glob("*.zip"), key=lambda file: file.stat().st_mtime)
    except OSError:
        return ""
    named = ", ".join(str(file) for file in reversed(models[-_NAMED:]))
    return f": try {named}" if named else ""


def _whose(archive: zipfile.ZipFile) -> str:
    """Say what a zip that is not a model file may be, and how that is opened."""
    if any(member.endswith("/data.pkl") for member in archive.namelist()):
        return (
            "torch wrote it; if d3rlpy's save did, open it with "
            "sb3_dmamba.d3rlpy.to_sb3(d3rlpy.load_learnable(path)), and if policy.save did, with "
            "DecisionMambaPolicy.load(path)"
        )
    return "models of Stable-Baselines3's own algorithms are loaded by their own classes"
