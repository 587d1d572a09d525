"""Precisions, waiting threads and the CPU's kind; machines of another kind are emulated."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_dmamba import DecisionMamba, machine
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.machine import (
    PASSIVE_WAITING,
    check_precision,
    choose_precision,
    describe_cpu,
    read_cpu_flags,
    read_waiting_seconds,
    set_thread_variables,
    tf32_products,
)
from sb3_dmamba.model_file import ModelFile
from sb3_dmamba.training import loop
from tests.toys import choice_trajectories

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DATA = choice_trajectories(10)
TINY: dict[str, Any] = {
    "device": "cpu", "seed": 0, "hidden_size": 8, "n_layers": 1, "batch_size": 2,
    "context_length": 3, "n_updates": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _only_expected_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop.StarvationWatch, "has_warned", True)  # this machine may be busy
    machine._warn_of_slow_bf16.cache_clear()
    yield
    machine._warn_of_slow_bf16.cache_clear()


def emulate(patch: pytest.MonkeyPatch, *flags: str, fp32: float = 43.0, bf16: float = 0.5) -> None:
    """Emulate a CPU with these flags and rates; without a flag they are not known."""
    patch.setattr(machine, "read_cpu_flags", lambda: frozenset(flags) or None)
    patch.setattr(machine, "measure_products", lambda: {"fp32": fp32, "bf16": bf16})


def test_auto_is_bf16_where_the_device_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[tuple[str, ...], float, str]] = [  # flags, measured bf16, chosen
        (("avx2", "avx512_bf16"), 0.5, "bf16"),
        (("amx_bf16",), 0.5, "bf16"),
        (("avx2", "avx512f"), 90.0, "fp32"),
        ((), 90.0, "bf16"),
        ((), 45.0, "fp32"),  # a difference that the next measurement may not find
        ((), 0.5, "fp32"),
    ]
    for flags, bf16, expected in cases:
        emulate(monkeypatch, *flags, bf16=bf16)
        assert choose_precision("auto", CPU) == expected, flags
        assert describe_cpu().endswith(", no native bf16") == (expected == "fp32")
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "bf16"), ((10, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert choose_precision("auto", CUDA) == expected
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for asked in ("fp32", "bf16", "tf32"):
        assert choose_precision(asked, CPU) == asked


def test_flags_of_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in machine._LIMITS:
        monkeypatch.delenv(name, raising=False)
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    assert read_cpu_flags() is None  # not Linux
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n")
    assert read_cpu_flags() == frozenset({"fpu", "avx2"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # torch uses less than the CPU has
    assert read_cpu_flags() is None
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    info.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")  # ARM: torch's build decides
    assert read_cpu_flags() is None


def test_bf16_warns_once_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, "avx2")
    model = DecisionMamba(None, precision="bf16", **TINY)
    with pytest.warns(UserWarning, match="86.0 times slower") as caught:
        model.fit(DATA, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(DATA, 1)
    assert [each.filename for each in caught] == [__file__]
    machine._warn_of_slow_bf16.cache_clear()
    emulate(monkeypatch, "avx2", bf16=50.0)  # it is not slow, whatever the flags say
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision("bf16", CPU)
        emulate(monkeypatch, "avx512_bf16")
        check_precision("bf16", CPU)
        check_precision("bf16", CUDA)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits oneDNN on x86")
def test_a_cpu_whose_bf16_is_measured() -> None:
    """OneDNN without AVX-512 is what an AVX2 machine has: bf16 is emulated, far slower."""
    code = """
import torch
from sb3_dmamba.machine import check_precision, choose_precision, measure_products
rates = measure_products()
assert rates["fp32"] > 4 * rates["bf16"], rates
assert choose_precision("auto", torch.device("cpu")) == "fp32"
check_precision("bf16", torch.device("cpu"))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "times slower" in done.stderr


def test_tf32_is_cuda_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        DecisionMamba(None, precision="tf32", **TINY).fit(DATA, 1)
    assert (caught.value.setting, caught.value.value) == ("precision", "tf32")
    assert caught.value.choices == ("auto", "fp32", "bf16")
    model = DecisionMamba(None, **TINY).fit(DATA, 1)
    model.save(tmp_path / "model")
    other = DecisionMamba.load(tmp_path / "model", precision="tf32")
    with pytest.raises(ConfigError):
        other.fit(DATA, 1)
    other.as_stateful_wrapper(1.0)  # it acts nevertheless
    # the device's check aside, an update computes forward and backward with the setting
    monkeypatch.setattr("sb3_dmamba.algorithm.check_precision", lambda *_: None)
    seen: list[str] = []
    backward: Any = torch.Tensor.backward

    def note(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(_tf32_setting())
        backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", note)
    before = _tf32_setting()
    other.fit(DATA, 1)
    model.fit(DATA, 1)
    assert seen == ["tf32", before]
    assert _tf32_setting() == before


def _tf32_setting() -> str:
    settings: Any = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):
        return str(settings.fp32_precision)
    return "tf32" if settings.allow_tf32 else "none"


def test_the_tf32_setting_comes_back() -> None:
    before = _tf32_setting()
    for precision, inside in (("tf32", "tf32"), ("bf16", before), ("fp32", before)):
        with pytest.raises(KeyError), tf32_products(precision):  # noqa: PT012
            assert _tf32_setting() == inside
            raise KeyError
        assert _tf32_setting() == before


# --- What a file says, and what goes on elsewhere ------------------------------------------------


def test_a_file_says_how_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.zip"
    for flags, used in ((("avx512_bf16",), "bf16"), (("avx2",), "fp32")):
        emulate(monkeypatch, *flags)
        DecisionMamba(None, precision="auto", **TINY).fit(DATA, 2).save(path)
        header = ModelFile.read(path).header
        assert header["config"]["precision"] == used
        computed = header["computed"]
        assert (computed["precision"], computed["threads"]) == ("auto", torch.get_num_threads())
        assert describe_cpu() in computed["device"]


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"fp32": "avx2", "bf16": "avx512_bf16"}
    for began, other in (("bf16", "fp32"), ("fp32", "bf16")):
        path = tmp_path / began
        emulate(monkeypatch, kinds[began])
        DecisionMamba(None, precision="auto", **TINY).fit(DATA, 2).save(path)
        emulate(monkeypatch, kinds[other])
        model = DecisionMamba.load(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(DATA)
        assert model.config.precision == began
        assert len(caught) == (began == "bf16")  # which is slow there, and said to be
        model.save(path)
        assert ModelFile.read(path).header["computed"]["precision"] == "auto"
        for asked, used in (("auto", other), ("fp32", "fp32")):
            again = DecisionMamba.load(path, precision=asked)
            assert again.config.precision == used
            again.fit(DATA, 1).save(tmp_path / "again")
            header = ModelFile.read(tmp_path / "again.zip").header
            assert header["computed"]["precision"] == asked
            assert header["config"]["precision"] == used


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    DecisionMamba(None, **TINY).fit(DATA, 2).save(tmp_path / "model")
    DecisionMamba.load(tmp_path / "model").fit(DATA)  # a warning is an error here
    model = DecisionMamba.load(tmp_path / "model")
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"OMP_NUM_THREADS={threads}"):
            model.fit(DATA, 1)
        model.fit(DATA, 1)
        model.fit(DATA, 1, reset_num_timesteps=True)
    finally:
        torch.set_num_threads(threads)
    assert model._computed["threads"] == threads + 1


# --- Busy machines -------------------------------------------------------------------------------


def test_threads_wait_asleep_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    for given in ({}, {"OMP_NUM_THREADS": "3"}):
        environment = dict(given)
        set_thread_variables(environment)
        assert environment == {**given, **PASSIVE_WAITING}
    for name in (*PASSIVE_WAITING, "KMP_BLOCKTIME"):
        environment = {name: "1"}
        set_thread_variables(environment)
        assert environment == {name: "1"}
    monkeypatch.setattr(machine, "_count_usable", lambda: 8)
    for quota, threads in (("250000 100000", "2"), ("20000 100000", "1"), ("max 100000", None)):
        (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
        for given in ({}, {"OMP_NUM_THREADS": "5"}):
            environment = dict(given)
            set_thread_variables(environment)
            assert environment.get("OMP_NUM_THREADS") == given.get("OMP_NUM_THREADS", threads)


def test_the_command_sets_it_before_torch_is_loaded() -> None:
    code = """
import os, sys
from sb3_dmamba.cli import main
assert "torch" not in sys.modules
sys.argv = ["dmamba", "--version"]
try:
    main()
finally:
    print(os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k not in PASSIVE_WAITING}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "PASSIVE 0 False", done.stderr


def test_time_without_a_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_THREADS", tmp_path)
    for thread, waited in (("7", 2_000_000_000), ("8", 500_000_000), ("9", None)):
        (tmp_path / thread).mkdir()
        if waited is not None:  # else it has just ended
            (tmp_path / thread / "schedstat").write_text(f"123 {waited} 4\n", encoding="ascii")
    assert read_waiting_seconds() == 2.5
    monkeypatch.setattr(machine, "_THREADS", tmp_path / "none")
    monkeypatch.setattr(time, "perf_counter", lambda: 30.0)
    monkeypatch.setattr(time, "process_time", lambda: 10.0)
    assert read_waiting_seconds() == 20.0


def test_a_starved_training_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "waited": 0.0, "share": 0.2}

    def read() -> float:
        return clock["waited"]

    def tick() -> float:
        clock["now"] += 5.0
        clock["waited"] += 5.0 * clock["share"]
        return clock["now"]

    monkeypatch.setattr(loop, "read_waiting_seconds", read)
    monkeypatch.setattr(time, "perf_counter", tick)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(loop.StarvationWatch, "has_warned", False)
    for name in PASSIVE_WAITING:
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecisionMamba(None, **TINY).fit(DATA, 6)
        clock["share"] = 0.5
        with pytest.warns(UserWarning, match="OMP_WAIT_POLICY=PASSIVE") as caught:
            DecisionMamba(None, **TINY).fit(DATA, 6)
        assert [each.filename for each in caught] == [__file__]
        DecisionMamba(None, **TINY).fit(DATA, 6)
    monkeypatch.setattr(loop.StarvationWatch, "has_warned", False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.warns(UserWarning, match="short of cores") as caught:
        DecisionMamba(None, **TINY).fit(DATA, 6)
    assert "PASSIVE" not in str(caught[0].message)
