"""Model and checkpoint files: a zip of JSON and safetensors, written atomically.

:class:`SavedModel` is the content: what a model needs to act and to go on training.
:class:`ModelFile` is the container, with a JSON header and groups of tensors.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Collection, Mapping
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
from sb3_dmamba.errors import ConfigError, ModelFileError, ParametersError, SpaceError
from sb3_dmamba.io import check_members, write_atomically
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import check_extractor, check_policy_kwargs, name_extractor
from sb3_dmamba.spaces import space_from_json, space_to_json
from sb3_dmamba.tasks import Task
from sb3_dmamba.training.updater import TRAINED, Updater

COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates")
ATTRIBUTES = {"verbose": 0, "tensorboard_log": None, "_stats_window_size": 100}  # with defaults
_SCHEDULE = ("warmup_updates", "decay_updates")
_REWARD_FLAGS = ("clip_rewards", "delayed_rewards")


@dataclass(frozen=True)
class SavedModel:
    """Everything that a model needs to act, and to go on training as if it had not stopped.

    Args:
        config: Its settings.
        task: Its task, or None.
        dataset: Description of the dataset that it was fitted to.
        observation_space: Flat observations or images, without the return-to-go.
        action_space: Its actions.
        target_return: Target return of its environment, if the user has set one.
        seed: Seed of its weights, batches and dropout.
        counters: Progress of the training, by attribute name.
        policy: Weights that act, averaged with ``ema_decay``, and normalisation.
        optimizer: The optimiser's moments and step counts, the carried state, and with averaging
            the raw weights; may be empty.
        extractor: Name of the features extractor's class, or None.
        policy_kwargs: Makes that extractor; not in the file.
        schedule: Warm-up and decay of the current run; None before the first.
        computed: How it was trained last: ``precision`` that was asked for (the config has the one
            in use), ``threads`` (None on a GPU) and ``device``; may be empty.
        attributes: Those of :data:`ATTRIBUTES` that are not the defaults.
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
    computed: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model file, atomically; ``.zip`` is added to a name without a suffix.

        Raises:
            OSError: The file cannot be written; an old one is unchanged.
        """
        if isinstance(path, (str, os.PathLike)) and not Path(path).suffix:
            path = f"{os.fspath(path)}.zip"
        header = {
            "sb3_dmamba_version": sb3_dmamba.__version__,
            "torch_version": torch.__version__,
            "config": self.config.to_file(),
            "task": None if self.task is None else self.task.to_dict(),
            "dataset": {
                **{name: getattr(self.dataset, name) for name in ("source", "env_id")},
                "env_kwargs": dict(self.dataset.env_kwargs),
                **{name: getattr(self.dataset, name) for name in _REWARD_FLAGS},
            },
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "target_return": self.target_return,
            "seed": self.seed,
            "counters": self.counters,
            "features_extractor": self.extractor,
            "schedule": self.schedule,
            **({"computed": self.computed} if self.computed else {}),
            **({"attributes": self.attributes} if self.attributes else {}),
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
            OSError: The file cannot be opened.
        """
        file = ModelFile.read(path)
        try:
            return cls._from_file(file)
        except ModelFileError as error:
            message = f"{path} does not describe a whole model: {error}"
            raise ModelFileError(
                message, path=path, setting=error.setting, value=error.value, choices=error.choices
            ) from error
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ModelFileError(
                f"{path} does not describe a whole model ({type(error).__name__}: {error}): it "
                f"was changed, or written by something else",
                path=path,
            ) from error

    @classmethod
    def _from_file(cls, file: ModelFile) -> SavedModel:
        new: dict[str, Any] = {
            "features_extractor": None,
            "schedule": None,
            "computed": {},
            "attributes": {},
        }  # in later files
        header = {**new, **file.header}
        target_return = _field(header, "target_return", float, int, type(None))
        if target_return is not None and not np.isfinite(target_return):
            raise ModelFileError(
                f"target_return is {target_return}", setting="target_return", value=target_return
            )
        observation_space = space_from_json(header["observation_space"])
        if not isinstance(observation_space, spaces.Box):
            message = f"observation_space is {observation_space}, and should be a Box"
            raise ModelFileError(message, setting="observation_space", value=observation_space)
        return cls(
            config=DecisionMambaConfig.from_dict(_field(header, "config", dict)),
            task=_read_task(_field(header, "task", dict, type(None))),
            dataset=_read_dataset(header["dataset"], file.tensors["dataset"]["returns"]),
            observation_space=observation_space,
            action_space=space_from_json(header["action_space"]),
            target_return=target_return,
            seed=_count(header, "seed", math.inf),
            counters={name: _count(header["counters"], name) for name in COUNTERS},
            policy=file.tensors["policy"],
            optimizer=file.tensors["optimizer"],
            extractor=_field(header, "features_extractor", str, type(None)),
            schedule=_read_schedule(_field(header, "schedule", dict, type(None))),
            computed=_read_computed(_field(header, "computed", dict)),
            attributes=_read_attributes(_field(header, "attributes", dict)),
        )

    def with_extractor(self, policy_kwargs: Mapping[str, Any] | None, path: Any) -> SavedModel:
        """Return the same model with what makes its features extractor.

        Args:
            policy_kwargs: As the model was made with; None or empty for none.
            path: The file, for the message.

        Raises:
            ConfigError: The model was made with another extractor.
        """
        given = check_policy_kwargs(policy_kwargs)
        check_extractor(self.extractor, name_extractor(given), path)
        return dataclasses.replace(self, policy_kwargs=given)

    def with_settings(self, **settings: Any) -> SavedModel:
        """Return the same model with some settings changed.

        Raises:
            ConfigError: A setting is unknown or out of range, or changes the weights' shapes.
        """
        if not settings:
            return self
        schedule = None if settings.keys() & set(_SCHEDULE) else self.schedule
        config, counters = self.config.replace(**settings), dict(self.counters)
        computed = {**self.computed, **{k: v for k, v in settings.items() if k == "precision"}}
        if self.config.ema_decay and not config.ema_decay and not self._raw_weights():
            message = (
                "ema_decay=0.0 acts with the raw weights, and the file has their average alone: "
                "leave ema_decay as it is, or take a file that was saved with the optimiser"
            )
            raise ConfigError(message, setting="ema_decay", value=0.0)
        if "n_updates" in settings:  # the length of the current run, whether finished or not
            done, total = counters["num_timesteps"], counters["_total_timesteps"]
            counters["_total_timesteps"] = max(done, config.resolved_n_updates) if total else total
        new: dict[str, Any] = {"counters": counters, "schedule": schedule, "computed": computed}
        changed = dataclasses.replace(self, config=config, **new)
        try:
            _compare_weights(changed._blank_weights(), self.policy, "in the file")
        except (ModelFileError, SpaceError, RuntimeError) as error:
            named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            name, value = next(iter(settings.items()))
            message = (
                f"{named} makes another network than the one in the file ({error}): change only "
                f"settings that leave the weights' shapes unchanged, or train again"
            )
            raise ConfigError(message, setting=name, value=value) from error
        return changed

    def restore(self, device: torch.device) -> Updater:
        """Build the policy and its updater, with weights and optimiser state.

        Raises:
            ModelFileError: The weights do not fit the config and spaces of the same file.
        """
        try:
            _compare_weights(self._blank_weights(), self.policy, "in the file")
            updater = Updater.create(
                *(self.observation_space, self.action_space, self.config, None, self.seed),
                *(device, self.policy_kwargs),
            )
        except (SpaceError, ConfigError, RuntimeError) as error:
            raise ModelFileError(
                f"the model file describes a model that cannot be built, so it was changed: {error}"
            ) from error
        self.restore_into(updater)
        return updater

    def restore_into(self, updater: Updater) -> None:
        """Load weights and optimiser state into an existing updater and its policy.

        Raises:
            ModelFileError: They do not fit; the updater is then unchanged.
        """
        _compare_weights(updater.policy.state_dict(), self.policy, "in the file")
        raw = self._raw_weights()
        rest = {n: each for n, each in self.optimizer.items() if not n.startswith(TRAINED)}
        if raw:
            _compare_weights(dict(updater.trained.named_parameters()), raw, "in training")
        updater.restore(rest)
        updater.load_weights(self.policy, raw)
        updater.has_trained = bool(self.optimizer) or not self.config.ema_decay

    def _raw_weights(self) -> dict[str, Tensor]:
        """Return the weights in training; empty if there is no average, or without them."""
        raw = (name for name in self.optimizer if name.startswith(TRAINED))
        return {name.removeprefix(TRAINED): self.optimizer[name] for name in raw}

    def _blank_weights(self) -> dict[str, Tensor]:
        """Return weights of the config's shapes, without allocating memory."""
        if self.config.n_layers > len(self.policy):
            raise ModelFileError(f"the model file has no weights of {self.config.n_layers} layers")
        # A features extractor may compute with its weights when it is built, which needs memory.
        device = torch.device("cpu" if self.policy_kwargs else "meta")
        with torch.random.fork_rng(devices=[]), device:
            blank = DecisionMambaPolicy(
                self.observation_space, self.action_space, self.config, **self.policy_kwargs
            )
        return blank.state_dict()


def check_parameters(
    given: Mapping[str, Any], policy: DecisionMambaPolicy, names: Collection[str], exact_match: bool
) -> None:
    """Check state dictionaries before Stable-Baselines3's ``set_parameters`` loads them."""
    expected = set(names)
    if not given.keys() <= expected or (exact_match and given.keys() != expected):
        raise ConfigError(
            f"parameters of {sorted(map(str, given))} do not match a model's, {sorted(expected)}: "
            f"give the result of model.get_parameters(), or parts of it with exact_match=False",
            setting="load_path_or_dict",
            value=sorted(map(str, given)),
            choices=sorted(expected),
        )
    for module in sorted(given.keys() & {"policy", "trained_policy"}):
        own, others = policy.state_dict(), given[module]
        if not exact_match:
            own = {name: tensor for name, tensor in own.items() if name in others}
            others = {name: tensor for name, tensor in others.items() if name in own}
        blank, others = (  # of any dtype: torch converts it
            {name: torch.empty(each.shape, device="meta") for name, each in weights.items()}
            for weights in (own, others)
        )
        _compare_weights(blank, others, "given", ParametersError)


def _compare_weights(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    where: str,
    error: type[ModelFileError] = ModelFileError,
) -> None:
    """Compare names, dtypes and shapes; torch would load those that fit before it complains."""
    expected = {name: _describe(tensor) for name, tensor in own.items()}
    found = {name: _describe(tensor) for name, tensor in given.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            message = (
                f"the weights {where} do not fit: {name} is {found.get(name, 'absent')}, and "
                f"should be {expected.get(name, 'absent')}: take a model of the same settings and "
                f"spaces"
            )
            raise error(message, setting=name, value=found.get(name))


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _read_task(fields: dict[str, Any] | None) -> Task | None:
    if fields is None:
        return None
    task = Task.from_dict(fields)
    _field(vars(task), "name", str)
    for name in ("env_id", "dataset"):
        _field(vars(task), name, str, type(None))
    return task


def _read_dataset(fields: Mapping[str, Any], returns: Tensor) -> DatasetInfo:
    fields = {"clip_rewards": None, "delayed_rewards": False, **fields}  # new in later files
    if returns.ndim != 1 or not bool(torch.isfinite(returns).all()):
        raise ModelFileError(
            f"the returns of the dataset are {_describe(returns)}, or not finite", setting="returns"
        )
    return DatasetInfo(
        _field(fields, "source", str),
        _field(fields, "env_id", str, type(None)),
        _field(fields, "env_kwargs", dict),
        returns.to(torch.float64).numpy(),
        _field(fields, "clip_rewards", bool, type(None)),
        _field(fields, "delayed_rewards", bool),
    )


def _read_schedule(fields: dict[str, Any] | None) -> dict[str, int | None] | None:
    if fields is None:
        return None
    return {name: None if fields[name] is None else _count(fields, name) for name in _SCHEDULE}


def _read_computed(fields: dict[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in fields.items() if k in ("precision", "threads", "device")}
    if found.get("threads") is not None:
        _count(found, "threads")
    return found


def _read_attributes(fields: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in fields.items() if name in ATTRIBUTES}
    for name, value in found.items():
        _field(found, name, str) if name == "tensorboard_log" else _count(found, name)
        if name == "_stats_window_size" and not 0 < value < 2**31:
            message = f"{name} is {value!r}, and should be a length"
            raise ModelFileError(message, setting=name, value=value)
    return found


def _field(fields: Mapping[str, Any], name: str, *kinds: type[Any]) -> Any:
    """Return a field of the header after a check of its type."""
    value = fields[name]
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ModelFileError(
            f"{name} is {value!r}, and should be {expected}", setting=name, value=value
        )
    return value


def _count(fields: Mapping[str, Any], name: str, limit: float = 2**63) -> int:
    value: int = _field(fields, name, int)
    if isinstance(value, bool) or not 0 <= value < limit:
        raise ModelFileError(
            f"{name} is {value!r}, and should be a count", setting=name, value=value
        )
    return value


FORMAT_VERSION = 1
_HEADER = "model.json"
_HEADER_FOR_OTHERS = "data"  # a copy where the hub's tools for Stable-Baselines3 look
# What reading a damaged zip, JSON or safetensors can raise. ValueError covers the decoders' errors,
# RuntimeError NotImplementedError and RecursionError.
_DAMAGE = (
    *(zipfile.BadZipFile, SafetensorError, ValueError, RuntimeError, LookupError, EOFError),
    *(OSError, OverflowError, MemoryError),
)


@dataclass(frozen=True)
class ModelFile:
    """Container of a model file: a JSON header and groups of tensors."""

    header: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def write(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the file; on failure an old file at ``path`` is unchanged."""
        if isinstance(path, (str, os.PathLike)):
            write_atomically(Path(path), self._to_bytes())
        else:
            path.write(self._to_bytes())

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
        """Read a file; ``.zip`` is added if there is no file of the name given."""
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
        members = archive.namelist()
        if _HEADER not in members:
            origin = "models of Stable-Baselines3's own algorithms are loaded by their own classes"
            if any(member.endswith("/data.pkl") for member in members):
                origin = (
                    "torch wrote it; if d3rlpy's save did, open it with "
                    "sb3_dmamba.d3rlpy.to_sb3(d3rlpy.load_learnable(path)), and if policy.save "
                    "did, with DecisionMambaPolicy.load(path)"
                )
            message = f"{name} has no {_HEADER}, so it is not an sb3_dmamba model file: {origin}"
            raise ModelFileError(message, path=path)
        check_members(archive)
        header = json.loads(archive.read(_HEADER))
        if not isinstance(header, dict):
            raise ModelFileError(f"{_HEADER} of {name} is not a JSON object", path=path)
        version = header.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            message = (
                f"{name} has format version {version!r}, and this sb3_dmamba reads 1 to "
                f"{FORMAT_VERSION}: upgrade with pip install -U sb3-dmamba"
            )
            raise ModelFileError(message, path=path, setting="format_version", value=version)
        tensors = {
            member.removesuffix(".safetensors"): load_tensors(archive.read(member))
            for member in members
            if member.endswith(".safetensors")
        }
        return cls(header, tensors)


def _models_near(source: Path) -> str:
    """Return a hint with the three newest model files beside a missing one."""
    folder = source if source.is_dir() else source.parent
    try:
        models = sorted(folder.glob("*.zip"), key=lambda file: file.stat().st_mtime)
    except OSError:
        return ""
    named = ", ".join(str(file) for file in reversed(models[-3:]))
    return f": try {named}" if named else ""
