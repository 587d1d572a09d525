"""Numbers from users: which are taken, what they become, and what is said of the others."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.checks import check_flag, check_integer, check_number, check_optional_integer
from sb3_dmamba.errors import ConfigError, DatasetError

INTEGERS = [8, np.int8(8), np.int64(8), np.uint8(8), np.uint64(8)]
NO_INTEGERS = [
    *(True, False, np.True_, 3.0, np.float32(3.0), np.float64(3.0), math.nan, math.inf, 1 + 0j),
    *("3", None, [3], np.array(3), np.array([3]), torch.tensor(3), Fraction(3), Decimal(3)),
]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_an_integer_becomes_pythons(value: Any) -> None:
    for checked in (check_integer("n", value, 1), check_optional_integer("n", value, 1)):
        assert checked == 8
        assert type(checked) is int


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_no_integer_is_named(value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        check_integer("n", value, 0)
    assert raised.value.setting == "n"
    assert raised.value.value is value


@pytest.mark.parametrize("value", [0, -5, np.int64(-1), np.uint8(0)], ids=repr)
def test_an_integer_may_be_too_small(value: Any) -> None:
    for check in (check_integer, check_optional_integer):
        with pytest.raises(DatasetError) as raised:
            check("n", value, 1, error=DatasetError)
        assert (raised.value.setting, raised.value.value) == ("n", value)
    with pytest.raises(ConfigError):  # where nothing else is asked for
        check_integer("n", value, 1)


def test_a_message_has_the_setting_the_value_and_the_range() -> None:
    for call, message in (
        (lambda: check_integer("n", 0, 1), "n=0: give an integer of at least 1"),
        (
            lambda: check_number("x", "1", 0.0, 1.0, "from 0 to 1"),
            "x='1': give a finite number from 0 to 1",
        ),
        (lambda: check_number("x", math.inf), "x=inf: give a finite number"),
        (lambda: check_flag("f", 1), "f=1: give True or False"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            call()


def test_the_least_integer_is_taken_and_so_is_a_large_one() -> None:
    assert check_integer("n", 1, 1) == 1
    assert check_integer("n", np.uint64(2**64 - 1), 1) == 2**64 - 1
    assert check_integer("n", 10**30, 1) == 10**30


def test_only_an_optional_integer_may_be_none() -> None:
    assert check_optional_integer("n", None, 1) is None
    with pytest.raises(ConfigError) as raised:
        check_integer("n", None, 1)
    assert raised.value.setting == "n"


@pytest.mark.parametrize(
    "value", [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)], ids=repr
)
def test_a_number_becomes_pythons(value: Any) -> None:
    checked = check_number("x", value, 0.0, 1.0, "from 0 to 1")
    assert checked == 0.5
    assert type(checked) is float


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1)], ids=repr)
def test_an_integer_is_a_number(value: Any) -> None:
    checked = check_number("x", value)
    assert checked == 1.0
    assert type(checked) is float


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, "0.5", None, 0.5 + 0j, np.complex64(0.5), [0.5], np.array(0.5)),
        *(math.nan, math.inf, -math.inf, np.float32("nan"), np.float32("inf"), 10**400),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_finite_number_is_named(value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        check_number("x", value)
    assert raised.value.setting == "x"
    assert raised.value.value is value


@pytest.mark.parametrize("value", [-0.1, 1.1, np.float32(1.5), 2], ids=repr)
def test_a_number_may_be_out_of_its_range(value: Any) -> None:
    with pytest.raises(DatasetError) as raised:
        check_number("x", value, 0.0, 1.0, "from 0 to 1", error=DatasetError)
    assert (raised.value.setting, raised.value.value) == ("x", value)
    assert check_number("x", 0, 0.0, 1.0, "from 0 to 1") == 0.0
    assert check_number("x", np.float32(1), 0.0, 1.0, "from 0 to 1") == 1.0


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_], ids=repr)
def test_a_flag_becomes_pythons(value: Any) -> None:
    checked = check_flag("f", value)
    assert checked == value
    assert type(checked) is bool


@pytest.mark.parametrize("value", [0, 1, np.int64(1), None, "yes", np.array(True)], ids=repr)
def test_what_is_no_flag_is_named(value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        check_flag("f", value)
    assert raised.value.setting == "f"
    assert raised.value.value is value
