"""Recurrent states carried between consecutive training windows, and burn-in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import ModelFileError
from sb3_dmamba.networks import SequenceModel

PREFIX = "carried."  # of tensor names in a model file
_NEXT_STEPS = f"{PREFIX}next_steps"

_NO_STEPS = torch.zeros(0, 2, dtype=torch.int64)

Layers = list[dict[str, Tensor]]


@torch.no_grad()
def warm_up(model: SequenceModel, before: WindowBatch) -> Layers:
    """Return the recurrent states after the steps before each window, without gradients.

    Source: Kapturowski et al. 2019 (R2D2), section 3.
    """
    initial = model.initial_layers(len(before))
    _, layers = model.resume(*before.inputs(), initial, before.padding_mask)
    return layers


class CarriedState:
    """Recurrent state of each row of the batch after its last window.

    Empty at first. The step that follows is stored with each row: a row whose window starts at
    another step (of another dataset, say) starts from the initial state.
    """

    def __init__(self) -> None:
        self._layers: Layers = []
        self._next_steps = _NO_STEPS
        self._held: tuple[Layers, Tensor] | None = None

    def layers_for(self, model: SequenceModel, batch: WindowBatch) -> Layers:
        """Return the state that each window starts from."""
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
        """Store the state after a batch, without its gradient."""
        self._layers = [{name: rows.detach() for name, rows in layer.items()} for layer in layers]
        self._next_steps = _first_steps(batch) + batch.padding_mask.sum(dim=1, keepdim=True)

    def hold(self, model: SequenceModel, n_rows: int) -> tuple[Layers, Tensor]:
        """Move the state into tensors at fixed addresses, as a CUDA graph needs them."""
        if self._held is not None and len(self._held[1]) == n_rows:
            return self._held
        layers = model.initial_layers(n_rows)
        device = next(iter(layers[0].values())).device
        next_steps = torch.full((n_rows, 2), -1, device=device)  # no window starts at -1
        found, found_steps = self._layers, self._next_steps
        self._layers, self._next_steps = self._held = layers, next_steps
        if len(found_steps) == n_rows:
            _copy_into((layers, next_steps), (found, found_steps))
        return self._held

    def held(self) -> list[Tensor]:
        """Return the tensors of :meth:`hold` in one list, which is empty without them."""
        if self._held is None:
            return []
        return [*(tensor for layer in self._held[0] for tensor in layer.values()), self._held[1]]

    def settle(self) -> None:
        """Copy the state into the tensors of :meth:`hold`, if there are any.

        Only after the backward pass, which needs their old values.
        """
        if self._held is None:
            return
        if len(self._next_steps) != len(self._held[1]):
            self._held = None
            return
        _copy_into(self._held, (self._layers, self._next_steps))
        self._layers, self._next_steps = self._held

    def select(self, rows: slice, n_rows: int) -> None:
        """Keep some rows of a whole batch's state; drop a state of another number of rows."""
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
        """Restore the result of :meth:`state`.

        Raises ModelFileError: the tensors belong to another model; nothing has changed then.
        """
        if not tensors:
            self._layers, self._next_steps, self._held = [], _NO_STEPS, None
            return
        next_steps = tensors.get(_NEXT_STEPS)
        if next_steps is None or next_steps.dtype != torch.int64 or next_steps.shape[1:] != (2,):
            raise ModelFileError(
                f"{_NEXT_STEPS} is not a list of steps: the file was changed", setting=_NEXT_STEPS
            )
        expected = {
            f"{PREFIX}layer{index}.{name}": row
            for index, layer in enumerate(model.initial_layers(1))
            for name, row in layer.items()
        }
        if wrong := {*expected, _NEXT_STEPS} ^ tensors.keys():
            raise ModelFileError(
                f"the carried state does not fit the model: {min(wrong)}", setting=min(wrong)
            )
        layers: Layers = [{} for _ in model.layers]
        for key, row in expected.items():
            found, shape = tensors[key], (len(next_steps), *row.shape[1:])
            if found.shape != shape or found.is_floating_point() != row.is_floating_point():
                message = (
                    f"{key} is {found.dtype} of shape {tuple(found.shape)}, and should have "
                    f"{shape}: take a file of the same model"
                )
                raise ModelFileError(message, setting=key, value=tuple(found.shape))
            layer, name = key.removeprefix(f"{PREFIX}layer").split(".", 1)
            layers[int(layer)][name] = found
        self._layers, self._next_steps, self._held = layers, next_steps, None


def _copy_into(places: tuple[Layers, Tensor], values: tuple[Layers, Tensor]) -> None:
    for place, rows in zip(places[0], values[0], strict=True):
        for name, tensor in place.items():
            tensor.copy_(rows[name])
    places[1].copy_(values[1])


def _first_steps(batch: WindowBatch) -> Tensor:
    """Return the index of each window's first step in the data and in its episode, (B, 2)."""
    assert batch.first_steps is not None  # a ConsecutiveSampler's batch
    return torch.stack([batch.first_steps, batch.timesteps[:, 0]], dim=1)


def _select(where: Tensor, carried: Tensor, initial: Tensor) -> Tensor:
    """Take rows of ``carried`` where a flag is True, and of ``initial`` elsewhere."""
    return torch.where(where.view(-1, *([1] * (initial.dim() - 1))), carried, initial)
