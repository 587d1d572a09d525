"""Recurrent states carried between consecutive training windows, and burn-in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ConsecutiveSampler, Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import ModelFileError
from sb3_dmamba.networks import SequenceModel

PREFIX = "carried."  # of the tensors' names in a model file
_NEXT_STEPS = f"{PREFIX}next_steps"

_NO_STEPS = torch.zeros(0, 2, dtype=torch.int64)

Layers = list[dict[str, Tensor]]


def make_sampler(
    trajectories: Trajectories,
    config: DecisionMambaConfig,
    seed: int,
    rows: slice = slice(None),
) -> WindowSampler:
    """Return what draws the batches that a config trains on, or this process's rows of them."""
    length, size = config.context_length, config.batch_size
    if config.carry_state:
        return ConsecutiveSampler(trajectories, length, size, seed, rows)
    return WindowSampler(trajectories, length, size, seed, config.burn_in, rows)


@torch.no_grad()
def warm_up(model: SequenceModel, before: WindowBatch) -> Layers:
    """Return the recurrent states after the steps before each window, without gradients.

    Args:
        model: In training or evaluation mode, as it is.
        before: ``WindowBatch.before``, on the model's device.

    Source: Kapturowski et al. 2019 (R2D2), section 3.
    """
    initial = model.initial_layers(len(before))
    _, layers = model.resume(*before.inputs(), initial, before.padding_mask)
    return layers


class CarriedState:
    """The recurrent state of each row of the batch after the window it saw last.

    Empty at first. It belongs to rows by the step that each has to see next, so a batch of other
    rows (another dataset's, or of another number of them) finds nothing to go on from.
    """

    def __init__(self) -> None:
        self._layers: Layers = []
        self._next_steps = _NO_STEPS
        self._held: tuple[Layers, Tensor] | None = None

    def layers_for(self, model: SequenceModel, batch: WindowBatch) -> Layers:
        """Return the state that each window starts from.

        Args:
            model: What keeps the state.
            batch: Windows with ``first_steps``, on the model's device.

        Returns:
            Where a window goes on from the last one of its row, the state after that; the initial
            state elsewhere.
        """
        initial = model.initial_layers(len(batch))
        if len(self._next_steps) != len(batch):
            return initial
        device = batch.timesteps.device
        goes_on = (self._next_steps.to(device) == _first_steps(batch)).all(dim=1)
        return [
            {name: _select(goes_on, carried[name].to(device), rows) for name, rows in new.items()}
            for new, carried in zip(initial, self._layers, strict=True)
        ]

    def keep(self, layers: Layers, batch: WindowBatch) -> None:
        """Note the state after a batch, without what led to it."""
        self._layers = [{name: rows.detach() for name, rows in layer.items()} for layer in layers]
        self._next_steps = _first_steps(batch) + batch.padding_mask.sum(dim=1, keepdim=True)

    def hold(self, model: SequenceModel, n_rows: int) -> tuple[Layers, Tensor]:
        """Move the state into tensors that stay where they are, which is all that a graph knows.

        Args:
            model: What keeps the state.
            n_rows: Rows of the batches to come; a state of others is dropped.

        Returns:
            Those tensors: one recurrent state a block, and the steps that come next.
        """
        if self._held is not None and len(self._held[1]) == n_rows:
            return self._held
        layers = model.initial_layers(n_rows)
        device = next(iter(layers[0].values())).device
        next_steps = torch.full((n_rows, 2), -1, device=device)  # no window begins there
        found, found_steps = self._layers, self._next_steps
        self._layers, self._next_steps = self._held = layers, next_steps
        if len(found_steps) == n_rows:
            _copy_into((layers, next_steps), (found, found_steps))
        return self._held

    def held(self) -> list[Tensor]:
        """Return the tensors that :meth:`hold` returned, one after the other; none without."""
        if self._held is None:
            return []
        return [*(tensor for layer in self._held[0] for tensor in layer.values()), self._held[1]]

    def settle(self) -> None:
        """Copy what was kept into the tensors that :meth:`hold` returned, if there are any.

        Only after the backward pass, which still needs the state before.
        """
        if self._held is None:
            return
        if len(self._next_steps) != len(self._held[1]):
            self._held = None
            return
        _copy_into(self._held, (self._layers, self._next_steps))
        self._layers, self._next_steps = self._held

    def select(self, rows: slice, n_rows: int) -> None:
        """Keep some rows of a whole batch's; a state of another number of rows is of no use."""
        self._held = None
        if len(self._next_steps) != n_rows:
            self._layers, self._next_steps = [], _NO_STEPS
            return
        self._layers = [{name: t[rows] for name, t in layer.items()} for layer in self._layers]
        self._next_steps = self._next_steps[rows]

    def state(self) -> dict[str, Tensor]:
        """Return named tensors for a model file; none before the first window."""
        if not self._layers:
            return {}
        named = {
            f"{PREFIX}layer{index}.{name}": rows
            for index, layer in enumerate(self._layers)
            for name, rows in layer.items()
        }
        return {_NEXT_STEPS: self._next_steps, **named}

    def restore(self, model: SequenceModel, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ModelFileError: The tensors belong to another model; nothing has changed then.
        """
        if not tensors:
            self._layers, self._next_steps, self._held = [], _NO_STEPS, None
            return
        next_steps = tensors.get(_NEXT_STEPS)
        if (
            next_steps is None
            or next_steps.dtype != torch.int64
            or next_steps.dim() != 2
            or next_steps.shape[1] != 2
        ):
            raise ModelFileError(
                f"{_NEXT_STEPS} is not a list of steps: the file was changed", setting=_NEXT_STEPS
            )
        expected = model.initial_layers(1)
        names = {f"{PREFIX}layer{i}.{name}" for i, layer in enumerate(expected) for name in layer}
        if names | {_NEXT_STEPS} != tensors.keys():
            wrong = min((names | {_NEXT_STEPS}) ^ tensors.keys())
            raise ModelFileError(
                f"the carried state does not fit the model: {wrong}", setting=wrong
            )
        layers = []
        for index, layer in enumerate(expected):
            found = {name: tensors[f"{PREFIX}layer{index}.{name}"] for name in layer}
            for name, row in layer.items():
                shape = (len(next_steps), *row.shape[1:])
                alike = found[name].is_floating_point() == row.is_floating_point()
                if found[name].shape != shape or not alike:
                    raise ModelFileError(
                        f"the carried state {name} of layer {index} is {found[name].dtype} of "
                        f"shape {tuple(found[name].shape)}, and should have {shape}",
                        setting=name,
                        value=tuple(found[name].shape),
                        choices=[shape],
                    )
            layers.append(found)
        self._layers, self._next_steps, self._held = layers, next_steps, None


def _copy_into(places: tuple[Layers, Tensor], values: tuple[Layers, Tensor]) -> None:
    for place, rows in zip(places[0], values[0], strict=True):
        for name, tensor in place.items():
            tensor.copy_(rows[name])
    places[1].copy_(values[1])


def _first_steps(batch: WindowBatch) -> Tensor:
    """Return the place of each window's first step in the data and in its episode, (B, 2)."""
    assert batch.first_steps is not None  # a ConsecutiveSampler's batch
    return torch.stack([batch.first_steps, batch.timesteps[:, 0]], dim=1)


def _select(where: Tensor, carried: Tensor, initial: Tensor) -> Tensor:
    """Take rows of one tensor where a flag is True, and of another elsewhere."""
    return torch.where(where.view(-1, *([1] * (initial.dim() - 1))), carried, initial)
