"""What one process knows of others: its rows, its device, and whether there are any."""

from __future__ import annotations

import pytest
import torch

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import ConsecutiveSampler, WindowSampler
from sb3_dmamba.errors import ConfigError, DistributedError
from sb3_dmamba.training.distributed import Processes, join_processes, local_device
from tests.models import use_memory
from tests.training import distributed_worker as worker


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sampler", [WindowSampler, ConsecutiveSampler])
def test_rows_of_all_processes_make_the_batch(size: int, sampler: type[WindowSampler]) -> None:
    whole = sampler(worker.DATA, 5, 8, 7)
    parts = [sampler(worker.DATA, 5, 8, 7, rows=Processes(r, size).rows(8)) for r in range(size)]
    for update in (0, 1, 9):
        found = [part.sample(update) for part in parts]
        assert [len(batch) for batch in found] == [8 // size] * size
        for index, tensor in enumerate(whole.sample(update).inputs()):
            assert torch.equal(torch.cat([batch.inputs()[index] for batch in found]), tensor)


@pytest.mark.parametrize(("batch_size", "size", "advice"), [(7, 2, "6 or 8"), (3, 4, "4")])
def test_uneven_rows_are_refused(batch_size: int, size: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size={batch_size} .*batch_size={advice},"):
        Processes(0, size).rows(batch_size)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="device='gpu'"):
        DecisionMamba("CartPole-v1", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="device='cuda' and torch sees no GPU"):
        assert DecisionMamba("CartPole-v1", device="cuda").device.type == "cpu"


def test_one_process_is_alone() -> None:
    with join_processes(worker.CPU) as processes, processes.leader_first():
        assert (processes.rank, processes.size, processes.is_leader) == (0, 1, True)
        assert processes.from_leader("own") == "own"
        processes.check_alike({"anything": object()})
        assert processes.tell(7) == 7
        tensors = {"rows": torch.arange(3)}
        assert processes.join_rows(tensors) == tensors


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_the_variables_mean_nothing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in worker.environment(1, 1).items():
        if name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    model = worker.make_model()
    memory = use_memory(model)
    model.fit(worker.DATA, 1)
    assert len(memory.rows) == 1


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**worker.environment(0, 1), "RANK": "first"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"RANK=first, WORLD_SIZE=2.*torchrun"):
        worker.make_model().fit(worker.DATA, 1)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [local_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    for name, value in worker.environment(0, 1).items():
        monkeypatch.setenv(name, value)
    devices = [local_device(name) for name in ("auto", "cuda", "cpu", "cuda:3")]
    assert devices == ["cuda:0", "cuda:0", "cpu", "cuda:3"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 1 .*no GPU.*--nproc-per-node=1"):
        local_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("auto") == "auto"
