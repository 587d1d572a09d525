"""Numbers, flags and names given by users: what is accepted, converted and refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.checks import (
    check_flag,
    check_integer,
    check_number,
    check_optional_integer,
    did_you_mean,
    near_names,
)
from sb3_dmamba.errors import ConfigError, DatasetError

check_share = functools.partial(check_number, low=0.0, high=1.0, words="from 0 to 1")


def accepted(check: Callable[[Any], Any], values: Iterable[Any], kind: type[Any]) -> None:
    for value in values:
        checked = check(value)
        assert checked == value
        assert type(checked) is kind, value


def refused(check: Callable[..., Any], name: str, values: Iterable[Any], *rest: Any) -> None:
    for value in values:
        for error in (ConfigError, DatasetError):
            with pytest.raises(error) as raised:
                check(name, value, *rest, error=error)
            assert raised.value.setting == name
            assert raised.value.value is value


def test_integers() -> None:
    good = [8, np.int8(8), np.uint64(8), np.uint64(2**64 - 1), 10**30, 1]
    accepted(lambda value: check_integer("n", value, 1), good, int)
    accepted(lambda value: check_optional_integer("n", value, 1), good, int)
    assert check_optional_integer("n", None, 1) is None
    bad = [
        *(True, np.True_, 3.0, np.float32(3.0), math.nan, math.inf, 1 + 0j, "3", [3]),
        *(np.array(3), np.array([3]), torch.tensor(3), Fraction(3), Decimal(3)),
        *(0, -5, np.int64(-1), np.uint8(0)),
    ]
    refused(check_integer, "n", [*bad, None], 1)
    refused(check_optional_integer, "n", bad, 1)


def test_numbers() -> None:
    good = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)]
    accepted(
        lambda value: check_share("x", value), [*good, 0, 1, np.int64(1), np.float32(1)], float
    )
    bad = [
        *(True, np.True_, "0.5", None, 0.5 + 0j, np.complex64(0.5), [0.5], np.array(0.5)),
        *(math.nan, math.inf, -math.inf, np.float32("nan"), np.float32("inf"), 10**400),
    ]
    refused(check_number, "x", bad)
    refused(check_share, "x", [-0.1, 1.1, np.float32(1.5), 2])


def test_flags() -> None:
    accepted(lambda value: check_flag("f", value), [True, False, np.True_, np.False_], bool)
    refused(check_flag, "f", [0, 1, np.int64(1), None, "yes", np.array(True)])


def test_near_names() -> None:
    known = ["hidden_size", "n_layers", "Hopper-v5"]
    assert near_names("hiden_size", known) == ["hidden_size"]
    assert near_names("hopper-V5", known) == ["Hopper-v5"]
    assert near_names("zzz", known) == []
    assert near_names("readme", ["README", "Readme", "data"], n=3) == ["README", "Readme"]
    assert near_names("ab", ["ab", "abc", "abcd"], n=2) == ["ab", "abc"]
    assert did_you_mean([]) == ""
    assert did_you_mean(["a"]) == "did you mean 'a'?"
    assert did_you_mean(["a", "b"]) == "did you mean 'a', 'b'?"
