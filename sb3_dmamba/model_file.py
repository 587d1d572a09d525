"""Model and checkpoint files: a zip of JSON and safetensors, written atomically."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

import sb3_dmamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.errors import ConfigError, ModelFileError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import check_extractor, check_policy_kwargs, name_extractor
from sb3_dmamba.paths import write_atomically
from sb3_dmamba.spaces import space_from_json, space_to_json
from sb3_dmamba.tasks import Task
from sb3_dmamba.training.updater import Updater

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


_SCHEDULE = ("warmup_updates", "decay_updates")
COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates")


@dataclass(frozen=True)
class SavedModel:
    """Everything a model needs to act, and to go on training as if it had never stopped.

    Args:
        config: Its settings.
        task: Its task, if it has one.
        dataset: What it was fitted to.
        observation_space: Flat observations, without the return-to-go.
        action_space: Its actions.
        target_return: Return that its environment asks for, if it was set.
        seed: Seed of its weights, batches and dropout.
        counters: How far training has come, by attribute name.
        policy: Weights and normalisation.
        optimizer: The optimiser's moments and steps; empty where they were left out.
        extractor: Name of its features extractor's class, if it has one.
        policy_kwargs: What makes that extractor, which the file does not hold.
        schedule: Warm-up and decay of the run that it is in; None where none has begun.
    """

    config: DecisionMambaConfig
    task: Task | None
    dataset: DatasetInfo
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    target_return: float | None
    seed: int
    counters: dict[str, int]
    policy: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extractor: str | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    schedule: dict[str, int | None] | None = None

    def write(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model file, atomically; ``.zip`` is added to a name without a suffix."""
        if isinstance(path, (str, os.PathLike)) and not Path(path).suffix:
            path = f"{os.fspath(path)}.zip"
        header = {
            "sb3_dmamba_version": sb3_dmamba.__version__,
            "torch_version": torch.__version__,
            "config": self.config.to_dict(),
            "task": None if self.task is None else self.task.to_dict(),
            "dataset": {
                "source": self.dataset.source,
                "env_id": self.dataset.env_id,
                "env_kwargs": dict(self.dataset.env_kwargs),
                "clip_rewards": self.dataset.clip_rewards,
                "delayed_rewards": self.dataset.delayed_rewards,
            },
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "target_return": self.target_return,
            "seed": self.seed,
            "counters": self.counters,
            "features_extractor": self.extractor,
            "schedule": self.schedule,
        }
        tensors = {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "dataset": {"returns": torch.as_tensor(self.dataset.returns)},
        }
        ModelFile(header, tensors).write(path)

    @classmethod
    def read(cls, path: str | os.PathLike[str] | BinaryIO) -> SavedModel:
        """Read a model file.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
        """
        file = ModelFile.read(path)
        try:
            return cls._from_file(file.header, file.tensors)
        except ModelFileError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ModelFileError(
                f"{path} does not describe a whole model ({type(error).__name__}: {error}): it "
                f"was changed, or written by something else"
            ) from error

    @classmethod
    def _from_file(
        cls, header: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]
    ) -> SavedModel:
        target = _expect(header["target_return"], float, int, type(None))
        if target is not None and not np.isfinite(target):
            raise ModelFileError(f"the model file has target_return {target}")
        return cls(
            config=DecisionMambaConfig.from_dict(_expect(header["config"], dict)),
            task=_read_task(header["task"]),
            dataset=_read_dataset(_expect(header["dataset"], dict), tensors["dataset"]["returns"]),
            observation_space=_expect(space_from_json(header["observation_space"]), spaces.Box),
            action_space=space_from_json(header["action_space"]),
            target_return=target,
            seed=_read_count(header["seed"]),
            counters={name: _read_count(header["counters"][name]) for name in COUNTERS},
            policy=tensors["policy"],
            optimizer=tensors["optimizer"],
            extractor=_expect(header.get("features_extractor"), str, type(None)),
            schedule=_read_schedule(header.get("schedule")),  # absent in older files
        )

    def with_extractor(self, policy_kwargs: Mapping[str, Any] | None, path: Any) -> SavedModel:
        """Return the same model, ready to be built with its features extractor.

        Args:
            policy_kwargs: What makes it; None or empty for none.
            path: The file, for the message.

        Raises:
            ConfigError: It is not what the model was made with.
        """
        given = check_policy_kwargs(policy_kwargs)
        check_extractor(self.extractor, name_extractor(given), path)
        return dataclasses.replace(self, policy_kwargs=given)

    def with_settings(self, **settings: Any) -> SavedModel:
        """Return the same model with some settings changed.

        Raises:
            ConfigError: A setting is unknown or out of range, or its network has other weights.
        """
        if not settings:
            return self
        schedule = None if settings.keys() & set(_SCHEDULE) else self.schedule
        config, counters = self.config.replace(**settings), dict(self.counters)
        if "n_updates" in settings:  # of the run that the file is in, finished or not
            done, total = counters["num_timesteps"], counters["_total_timesteps"]
            counters["_total_timesteps"] = max(done, config.n_updates) if total else total
        changed = dataclasses.replace(self, config=config, counters=counters, schedule=schedule)
        try:
            changed._check_weights(changed._blank_weights())
        except (ModelFileError, SpaceError, RuntimeError) as error:
            named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            raise ConfigError(
                f"{named} makes another network than the one in the file ({error}): change only "
                f"what leaves the weights as they are, or train again"
            ) from error
        return changed

    def restore(self, device: torch.device) -> Updater:
        """Build the networks and put weights and optimiser state into them.

        Raises:
            ModelFileError: They do not fit the config and spaces of the same file; says which.
        """
        try:
            self._check_weights(self._blank_weights())
            updater = Updater.create(
                self.observation_space,
                self.action_space,
                self.config,
                None,
                self.seed,
                device,
                self.policy_kwargs,
            )
        except (SpaceError, ConfigError, RuntimeError) as error:
            raise ModelFileError(
                f"the model file describes a model that cannot be built, so it was changed: {error}"
            ) from error
        self.restore_into(updater)
        return updater

    def restore_into(self, updater: Updater) -> None:
        """Put weights and optimiser state into networks that exist.

        Raises:
            ModelFileError: They do not fit; says which. The networks are then as they were.
        """
        self._check_weights(updater.policy.state_dict())
        updater.restore(self.optimizer)
        updater.policy.load_state_dict(self.policy)

    def _blank_weights(self) -> dict[str, Tensor]:
        """Return the shapes that the config calls for, without setting any memory aside."""
        if self.config.n_layers > len(self.policy):
            raise ModelFileError(f"the model file has no weights of {self.config.n_layers} layers")
        # An extractor's constructor may compute something, which has no result without memory.
        device = torch.device("cpu" if self.policy_kwargs else "meta")
        with torch.random.fork_rng(devices=[]), device:
            blank = DecisionMambaPolicy(
                self.observation_space, self.action_space, self.config, **self.policy_kwargs
            )
        return blank.state_dict()

    def _check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Check names, types and shapes; torch would overwrite what fits before it complains."""
        _compare_weights(weights, self.policy, "in the file")


def check_parameters(
    given: Mapping[str, Any], policy: DecisionMambaPolicy, exact_match: bool
) -> None:
    """Check state dictionaries, as Stable-Baselines3's ``set_parameters`` takes them.

    Args:
        given: State dictionaries of the policy and its optimiser, by name.
        policy: What they are for.
        exact_match: Whether both have to be there, with every weight.

    Raises:
        ConfigError: There is another name, or one is missing.
        ModelFileError: Weights are of other shapes than the policy's; torch would overwrite those
            that fit before it complains.
    """
    expected = {"policy", "policy.optimizer"}
    if not given.keys() <= expected or (exact_match and given.keys() != expected):
        raise ConfigError(
            f"parameters of {sorted(map(str, given))} do not match a model's, {sorted(expected)}: "
            f"give what model.get_parameters() returned, or some of it with exact_match=False"
        )
    own, others = policy.state_dict(), given.get("policy", {})
    if not exact_match:
        own = {name: tensor for name, tensor in own.items() if name in others}
        others = {name: tensor for name, tensor in others.items() if name in own}
    if "policy" in given:
        _compare_weights(_shapes(own), _shapes(others), "given")


def _compare_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    expected = {name: _describe(tensor) for name, tensor in own.items()}
    found = {name: _describe(tensor) for name, tensor in given.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelFileError(
                f"the weights {where} do not fit: {name} is {found.get(name, 'absent')}, and "
                f"should be {expected.get(name, 'absent')}: take a model of the same settings "
                f"and spaces"
            )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without data, all of one dtype: torch converts others."""
    return {name: torch.empty(each.shape, device="meta") for name, each in weights.items()}


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _read_task(fields: Any) -> Task | None:
    if fields is None:
        return None
    task = Task.from_dict(_expect(fields, dict))
    _expect(task.name, str)
    for text in (task.env_id, task.dataset):
        _expect(text, str, type(None))
    return task


def _read_dataset(fields: Mapping[str, Any], returns: Tensor) -> DatasetInfo:
    if returns.ndim != 1 or not bool(torch.isfinite(returns).all()):
        raise ModelFileError(f"the returns of the dataset are {_describe(returns)}, or not finite")
    return DatasetInfo(
        _expect(fields["source"], str),
        _expect(fields["env_id"], str, type(None)),
        _expect(fields["env_kwargs"], dict),
        returns.to(torch.float64).numpy(),
        _expect(fields.get("clip_rewards"), bool, type(None)),  # absent in older files
        _expect(fields.get("delayed_rewards", False), bool),  # likewise
    )


def _read_schedule(fields: Any) -> dict[str, int | None] | None:
    if fields is None:
        return None
    found = _expect(fields, dict)
    return {name: None if found[name] is None else _read_count(found[name]) for name in _SCHEDULE}


def _read_count(value: Any) -> int:
    count: int = _expect(value, int)
    if isinstance(value, bool) or count < 0:
        raise ModelFileError(f"the model file has {value!r} where a count belongs")
    return count


def _expect(value: Any, *kinds: type[Any]) -> Any:
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ModelFileError(f"the model file has {value!r} where {names} belongs")
    return value
