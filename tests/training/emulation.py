"""Emulation of a GPU on the CPU: graphs that hold addresses, and a guard against synchronising.

A CUDA graph is a list of kernels with the addresses and the numbers they were launched with. Here
it is the list of operations below autograd, with the tensors and the numbers they were called with:
what a function takes from anywhere else (a Python number, a tensor that was replaced since) stays
what it was when it was recorded, as it does there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_LOOKS = {  # at values of the device's, which the host has to wait for
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
_WARM_UPS = 2


class HostLookedError(RuntimeError):
    """The host has waited for the device."""


def _check(function: Any, args: Any) -> None:
    by_flags = function in _INDEXED and any(
        isinstance(index, Tensor) and index.dtype is torch.bool for index in tree_leaves(args[1])
    )
    if function in _LOOKS or by_flags:
        raise HostLookedError(f"{function}: operation not permitted when stream is capturing")


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        _check(function, args)
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        tensors = {
            id(t): t for call in self.calls for t in tree_leaves(call) if isinstance(t, Tensor)
        }
        counted = tuple(t for t in tensors.values() if not t.is_inference())
        versions = tuple(t._version for t in counted)
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)
        # A graph writes behind torch's back.
        torch._C._autograd._unsafe_set_version_counter(counted, versions)


class Recorder:
    """Records on the CPU, and counts; in the place of the one for CUDA."""

    def __init__(self) -> None:
        self.n_recorded = self.n_replays = 0

    def __call__(
        self, run: Callable[[], list[Tensor]], device: torch.device
    ) -> tuple[Callable[[], None], list[Tensor]]:
        for _ in range(_WARM_UPS):
            run()
        self.n_recorded += 1
        with _Recording() as recording:
            results = run()

        def replay() -> None:
            self.n_replays += 1
            recording.replay()

        return replay, results


@contextmanager
def nobody_looks() -> Iterator[None]:
    """Raise where the host would wait for the device, were the tensors there."""

    class Guard(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            _check(function, args)
            return function(*args, **(kwargs or {}))

    def refuse(name: str) -> Callable[..., Any]:
        def method(*_: Any, **__: Any) -> Any:
            raise HostLookedError(f"Tensor.{name}")

        return method

    names = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
    with pytest.MonkeyPatch.context() as patch, Guard():  # type: ignore[no-untyped-call]
        for name in names:
            patch.setattr(Tensor, name, refuse(name))
        yield
