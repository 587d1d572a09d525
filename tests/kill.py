"""Kill commands at random moments, and check what they leave behind.

``python -m tests.kill --times 50`` kills that many ``dmamba train --checkpoint-every``, and as many
``dmamba data convert``, with SIGKILL. Every file under its final name must be whole. The same
command, for a training with ``--resume FOLDER``, must end with what an undisturbed one writes, to
the last bit, or say that nothing was saved; it is killed as well, four times of five.

The commands run in forks of this process, which has imported everything: a moment then falls into
their work, and not into the seconds of an import.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sb3_dmamba.cli
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.model_file import SavedModel
from tests.data.builders import write_hdf5
from tests.models import TINY, tiny_model
from tests.toys import random_trajectories

TRAIN = ["train", "CartPole-v1", "--updates", "60", "--seed", "1", "--device", "cpu"]
TRAIN += [f"--set={name}={TINY[name]}" for name in ("hidden_size", "n_layers", "context_length")]


def run(command: Sequence[object], log: Path, seconds: float | None = None) -> int | None:
    """Run a ``dmamba`` command, and kill it after some seconds.

    Returns its exit status; None if it was killed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, none of which the child needs
        process = os.fork()
    if not process:
        status = 70
        try:
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            sys.argv = ["dmamba", *map(str, command)]
            sb3_dmamba.cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else bool(end.code)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return None if status == -signal.SIGKILL else status


@dataclass
class Killed:
    """A command that is killed again and again: counts, and what went wrong."""

    name: str
    n_killed: int = 0
    n_started_anew: int = 0
    n_finished: int = 0

    def fail(self, problem: str, log: Path) -> None:
        raise AssertionError(
            f"{self.name}, after {self.n_killed} kills: {problem}\n{log.read_text()}"
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: killed {self.n_killed} times, {self.n_finished} finished to the same "
            f"bits, {self.n_started_anew} starts anew since nothing was saved"
        )


def kill_trainings(folder: Path, times: int, rng: random.Random) -> Killed:
    """Kill trainings and those that resume them."""
    data, log, result = folder / "data", folder / "log", Killed("dmamba train --checkpoint-every")
    random_trajectories((30,) * 20, (4,), n_actions=2).save(data)
    tiny_model(n_updates=2).fit(random_trajectories(), callback=None)  # compiles, before the forks
    how = ["--dataset", data, "--checkpoint-every", "4"]
    begin = [*TRAIN, *how, "--output"]
    start = time.perf_counter()
    if run([*begin, folder / "whole"], log):
        result.fail("it failed undisturbed", log)
    seconds = time.perf_counter() - start
    expected = _members(folder / "whole" / "model.zip")
    number = 0
    while result.n_killed < times:
        number += 1
        place, command = folder / str(number), [*begin, folder / str(number)]
        while True:
            is_spared = result.n_killed >= times or rng.random() < 0.2
            status = run(command, log, None if is_spared else rng.uniform(0, seconds))
            for file in place.rglob("[!.]*.zip"):
                SavedModel.read(file)
            if status is None:
                result.n_killed += 1
                command = ["train", "--resume", place, *how]
            elif status == 0:
                break
            elif "nothing was saved before it stopped" in log.read_text() or not place.exists():
                result.n_started_anew += 1
                command = [*begin, place]
            else:
                result.fail(f"status {status}", log)
        if _members(place / "model.zip") != expected:
            result.fail("the resumed model differs from the undisturbed one", log)
        result.n_finished += 1
        shutil.rmtree(place)
    return result


def _members(path: Path) -> dict[str, bytes]:
    """Return all that a model file holds; the dates of its members are the clock's."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def kill_conversions(folder: Path, times: int, rng: random.Random) -> Killed:
    """Kill conversions: to a new place, and in place of an older store."""
    log, result = folder / "log", Killed("dmamba data convert")
    data, older = random_trajectories((500,) * 100, (40,)), random_trajectories()
    flags = {"terminals": data.truncated.repeat(500), "timeouts": data.truncated.repeat(500)}
    flags["timeouts"][499::500] = True
    arrays = {name: getattr(data, name) for name in ("observations", "actions", "rewards")}
    source = write_hdf5(folder / "data.hdf5", {**arrays, **flags}, compression="gzip")
    start = time.perf_counter()
    if run(["data", "convert", source, folder / "whole"], log):
        result.fail("it failed undisturbed", log)
    seconds = time.perf_counter() - start
    expected, parent = _files(folder / "whole"), folder / "stores"
    while result.n_killed < times:
        place = parent / "store"
        shutil.rmtree(parent, ignore_errors=True)
        is_replacing = rng.random() < 0.5
        if is_replacing:
            older.save(place)
        command = ["data", "convert", source, place, *(["--overwrite"] if is_replacing else [])]
        while True:
            is_spared = result.n_killed >= times or rng.random() < 0.2
            status = run(command, log, None if is_spared else rng.uniform(0, seconds))
            if status is None:
                result.n_killed += 1
                is_new = _is_whole(place, data.n_steps, older.n_steps if is_replacing else None)
                if is_new and "--overwrite" not in command:
                    command += ["--overwrite"]  # it was killed when all was done
            elif status == 0:
                break
            else:
                result.fail(f"status {status}", log)
        if _files(place) != expected:
            result.fail("the store differs from the undisturbed one", log)
        if left := [each.name for each in parent.iterdir() if each != place]:
            result.fail(f"{left} are left", log)
        result.n_finished += 1
    return result


def _is_whole(place: Path, n_steps: int, n_older: int | None) -> bool:
    """Check that a place has nothing, the older store or the new one; return whether the new."""
    if not place.exists():
        assert n_older is None, "the older store is gone"
        try:
            load_trajectories(place)
        except DecisionMambaError:
            return False
    found = Trajectories.open(place, verify=True).n_steps
    assert found in (n_steps, n_older)
    return found == n_steps


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


KINDS = {"train": kill_trainings, "convert": kill_conversions}


def kill(kind: str, times: int, seed: int) -> Killed:
    """Kill commands of a kind, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return KINDS[kind](Path(folder), times, random.Random(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS))
    options = parser.parse_args()
    for kind in KINDS if options.only is None else [options.only]:
        print(kill(kind, options.times, options.seed), flush=True)


if __name__ == "__main__":
    main()
