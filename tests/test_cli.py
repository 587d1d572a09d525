"""``dmamba``: what it prints where, what it writes, and how it fails."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sb3_dmamba import data
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.cli import app, demo
from sb3_dmamba.cli.output import command_output, parse_settings
from sb3_dmamba.cli.train import describe_changes
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.trajectories import replace
from sb3_dmamba.errors import ConfigError, DatasetError, MissingDependencyError
from sb3_dmamba.io import warn_caller
from sb3_dmamba.tasks import get_task, list_tasks
from sb3_dmamba.training import loop as interrupts
from sb3_dmamba.training.updater import Updater
from tests.models import differences, everything_in

DATASET = "cartpole/tiny-v0"
TINY = ["--set", "hidden_size=16", "--set", "n_layers=1", "--set", "context_length=4"]
TINY += ["--set", "batch_size=8", "--set", "channel_mixing=false", "--set", "backend=reference"]
SIX = ["train", DATASET, *TINY, "--seed", "3", "--updates", "6"]


@pytest.fixture(scope="module")
def minari_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of random CartPole episodes in a folder of its own."""
    root = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        collect("random", "CartPole-v1", 600, seed=0)[:12].to_minari(DATASET)
    return root


@pytest.fixture(autouse=True)
def _workplace(minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every command in an empty folder, with the tiny dataset within reach."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari_root))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, exit_code: int = 0) -> Result:
    """Run a command and check its exit code."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, f"{result.exception!r}\n{result.output}"
    return result


def train(*arguments: str, updates: int = 6) -> Result:
    """Train on the tiny dataset with a tiny network."""
    return run("train", DATASET, *TINY, "--seed", "3", "--updates", str(updates), *arguments)


COMMANDS = ["demo", "train", "evaluate", "export", "card", "experiment", "bench", "doctor"]
COMMANDS += ["tasks", "data info", "data convert", "data download"]


def test_help_explains_every_command_and_option() -> None:
    root = run("--help").stdout
    assert "--install-completion" in root
    assert re.fullmatch(r"sb3_dmamba \d+\.\d+\.\d+\S*\n", run("--version").stdout)
    for command in COMMANDS:
        text = re.sub(r"\x1b\[[0-9;]*m", "", run(*command.split(), "--help").stdout)
        assert command.split()[0] in root
        for part in ("Examples", "Output", "--json", "--debug"):
            assert part in text, command
        rows = [line.strip("│ ") for line in text.splitlines() if re.match(r"│ +\*? *-", line)]
        assert rows
        assert [row for row in rows if len(row.split("  ")[-1].split()) < 2] == [], "no help"


def test_tasks() -> None:
    text = run("tasks").stdout
    for task in list_tasks():
        assert re.search(rf"^ *{re.escape(task.name)} ", text, flags=re.MULTILINE)
    tasks = json.loads(run("tasks", "--json").stdout)
    assert [task["name"] for task in tasks] == [task.name for task in list_tasks()]
    hopper = next(task for task in tasks if task["name"] == "hopper-medium-v2")
    assert hopper["overrides"]["hidden_size"] == 256
    assert hopper["source"]["overrides"]


def test_train_writes_model_and_log_where_asked() -> None:
    result = train("--output", "out/here", "--checkpoint-every", "3", "--eval-every", "4")
    assert sorted(str(path.relative_to("out/here")) for path in Path("out/here").rglob("*")) == [
        "checkpoints",
        "checkpoints/model_3_steps.zip",
        "checkpoints/model_6_steps.zip",
        "model.zip",
        "progress.csv",
    ]
    assert "dmamba evaluate out/here/model.zip" in result.stdout
    header = Path("out/here/progress.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"train/loss", "train/learning_rate", "eval/mean_reward"} <= set(header)
    model = DecisionMamba.load("out/here/model.zip")
    assert model.num_timesteps == 6
    assert model.seed == 3
    assert model.config.hidden_size == 16
    assert model.config.n_updates == 6


def test_json_stands_alone_whatever_else_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = DecisionMamba.fit

    def noisy_fit(self: DecisionMamba, *args: Any, **kwargs: Any) -> DecisionMamba:
        print("a callback's chatter")  # noqa: T201
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(DecisionMamba, "fit", noisy_fit)
    result = train("--json")
    assert "a callback's chatter" in result.stderr
    document = json.loads(result.stdout)
    assert document["model"] == "runs/cartpole-tiny-v0/model.zip"
    assert Path(document["model"]).is_file()
    assert (document["updates"], document["total_updates"], document["seed"]) == (6, 6, 3)
    assert document["dataset"]["episodes"] == 12
    assert DecisionMambaConfig.from_dict(document["config"]).context_length == 4


def test_train_to_tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="the TensorBoard extra is not installed")
    train("--tensorboard", "logs/run")
    assert list(Path("logs/run").glob("events.out.tfevents.*"))


def test_resumed_run_equals_an_uninterrupted_one() -> None:
    train("--output", "whole", "--checkpoint-every", "2")
    Path("half/checkpoints").mkdir(parents=True)
    checkpoint = Path("half/checkpoints/model_2_steps.zip")
    checkpoint.write_bytes(Path("whole/checkpoints/model_2_steps.zip").read_bytes())
    document = json.loads(run("train", "--resume", str(checkpoint), "--json").stdout)
    assert (document["updates"], document["total_updates"]) == (4, 6)
    assert_equal_files("whole/model.zip", "half/model.zip")
    assert Path("half/progress-from-2.csv").is_file()


def test_resuming_a_finished_run_needs_a_number() -> None:
    train("--output", "out")
    result = run("train", "--resume", "out/model.zip", exit_code=1)
    assert "--updates" in result.stderr
    run("train", "--resume", "out/model.zip", "--updates", "3")
    assert DecisionMamba.load("out/model.zip").num_timesteps == 9


def test_train_keeps_a_model_that_is_there() -> None:
    train("--output", "out")
    before = Path("out/model.zip").read_bytes()
    arguments = ["train", DATASET, *TINY, "--updates", "1", "--output", "out"]
    result = run(*arguments, exit_code=1)
    assert "--overwrite" in result.stderr
    assert Path("out/model.zip").read_bytes() == before
    run(*arguments, "--overwrite")
    assert Path("out/model.zip").read_bytes() != before


def test_evaluate_reports_what_the_model_does() -> None:
    train("--output", "out")
    arguments = ["evaluate", "out/model.zip", "--target", "20", "--target", "50", "--episodes", "2"]
    arguments += ["--seed", "5", "--memory", "stream", "--weights", "last"]
    document = json.loads(
        run(*arguments, "--output", "new/report.json", "--plot", "new/plot.png", "--json").stdout
    )
    report = DecisionMamba.load("out/model.zip").evaluate([20, 50], 2, memory="stream", seed=5)
    expected = json.loads(report.to_json())
    for each in (document, expected):
        del each["seconds"]
    assert document == expected
    written = json.loads(Path("new/report.json").read_text(encoding="utf-8"))
    assert written["results"] == document["results"]
    assert Path("new/plot.png").read_bytes().startswith(b"\x89PNG")
    assert "stream" in run(*arguments).stdout


def test_evaluate_with_other_conditions() -> None:
    run("train", "CartPole-v1", *TINY, "--dataset", DATASET, "--updates", "2", "--output", "out")
    model = DecisionMamba.load("out/model.zip")
    assert model.task is not None
    assert model.task.name == "CartPole-v1"
    arguments = ["--target", "20", "--episodes", "2", "--stochastic", "--max-steps", "4", "--json"]
    document = json.loads(run("evaluate", "out/model.zip", *arguments).stdout)
    assert not document["deterministic"]
    assert document["results"][0]["lengths"] == [4, 4]
    result = run("evaluate", "out/model.zip", "--env", "Pendulum-v1", exit_code=1)
    assert result.stderr.startswith("SpaceError: ")


def test_demo_on_the_bundled_dataset() -> None:
    pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    document = json.loads(run("demo", "--updates", "2", "--episodes", "1", "--json").stdout)
    asked = [result["target_return"] for result in document["report"]["results"]]
    assert asked == list(get_task("halfcheetah-bundled").target_returns)
    assert document["report"]["env_id"] == "HalfCheetah-v5"


def test_the_environment_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_TASK", "CartPole-v1")

    def missing(*_: Any) -> Any:
        raise MissingDependencyError("mujoco", "make Hopper-v5", "mujoco")

    monkeypatch.setattr("sb3_dmamba.tasks.make_environment", missing)
    training = ["train", "CartPole-v1", "--dataset", DATASET, "--eval-every", "1"]
    for arguments in (["demo"], training):
        result = run(*arguments, exit_code=1)
        assert result.stderr.startswith("MissingDependencyError: mujoco")
        assert result.stderr.count("\n") == 1
        assert not Path("runs").exists()


WITHOUT = """
import sys
sys.modules["torch"] = None
from sb3_dmamba.cli.app import main
main()
"""


def test_without_torch_every_command_says_so_in_a_line() -> None:
    for arguments in (["doctor"], ["demo"], ["evaluate", "model.zip"]):
        command = [sys.executable, "-c", WITHOUT, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 1, arguments
        assert result.stderr.count("\n") == 1
        assert result.stderr.rstrip().endswith(": pip install torch")


MISTAKES = [
    (["train", "hoper-medium-v2"], "UnknownTaskError: .*'hopper-medium-v2'"),
    (["train", "cartpole/absent-v0"], "DatasetError: .*cartpole/absent-v0"),
    (["train", "CartPole-v1"], "DatasetError: .*--dataset"),
    (["train", DATASET, "--set", "hiden_size=3"], "ConfigError: .*'hidden_size'"),
    (["train", DATASET, "--set", "hidden_size"], "ConfigError: .*field=value"),
    (["train", DATASET, "--set", "n_updates=5"], "ConfigError: --set n_updates=.*--updates"),
    (["train", DATASET, "--device", "abacus"], "ConfigError: device 'abacus'"),
    (["train", DATASET, "--device", "gpu"], "ConfigError: device 'gpu' .*: try auto"),
    (["train", "--resume", "absent.zip"], "ModelFileError: .*absent.zip"),
    (["card", "absent.zip", "out"], "ModelFileError: .*absent.zip"),
    (["export", "absent.zip"], "ModelFileError: .*absent.zip"),
    (["experiment", "mixer"], "ConfigError: .*'mixers'"),
    (["evaluate", "pyproject.txt"], "ModelFileError: .*pyproject.txt"),
]


def test_a_mistake_is_one_clean_line_on_stderr() -> None:
    Path("pyproject.txt").write_text("no model", encoding="utf-8")
    for arguments, message in MISTAKES:
        result = run(*arguments, "--json", exit_code=1)
        assert result.stdout == ""
        assert re.match(message, result.stderr), result.stderr
        assert result.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["train", "CartPole-v1", "--debug"])
    assert isinstance(result.exception, DatasetError)
    for value, is_shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("DMAMBA_DEBUG", value)
        result = CliRunner().invoke(app, ["train", "CartPole-v1"])
        assert isinstance(result.exception, DatasetError) == is_shown, value


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend may work here")
def test_another_backend_than_the_models() -> None:
    train("--output", "out")
    model = DecisionMamba.load("out/model.zip", backend="cuda")
    model.save("out/gpu.zip")
    result = run("evaluate", "out/gpu.zip", "--episodes", "1", exit_code=1)
    assert "BackendError: backend='cuda' does not work here" in result.stderr
    assert "backend='auto'" in result.stderr
    run("evaluate", "out/gpu.zip", "--episodes", "1", "--target", "9", "--backend", "auto")
    resume = ["train", "--resume", "out/gpu.zip", "--updates", "1"]
    run(*resume, exit_code=1)
    run(*resume, "--set", "backend=auto")
    assert DecisionMamba.load("out/model.zip").config.backend == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has TF32")
def test_another_precision_than_the_models() -> None:
    train("--output", "out")
    DecisionMamba.load("out/model.zip", precision="tf32").save("out/gpu.zip")
    resume = ["train", "--resume", "out/gpu.zip", "--updates", "1"]
    assert "ConfigError: precision='tf32'" in run(*resume, exit_code=1).stderr
    run(*resume, "--set", "precision=fp32")
    assert DecisionMamba.load("out/model.zip").config.precision == "fp32"


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (
        ["train"],
        ["train", DATASET, "--resume", "model.zip"],
        ["train", "--resume", "model.zip", "--seed", "1"],
        ["train", "--resume", "model.zip", "--set", "dropout=0"],
        ["train", DATASET, "--updates", "0"],
        ["evaluate", "model.zip", "--memory", "elephant"],
        ["evaluate", "model.zip", "--plot", "plot.doc"],
        ["card", "model.zip", "out", "--report", "report.json", "--target", "3"],
        ["demo", "--updates", "many"],
        ["demon"],
    ):
        assert "Usage: " in run(*arguments, exit_code=2).stderr


@pytest.fixture
def press(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Press Ctrl-C, once, while the n-th update from now is under way."""
    compute_loss, count = Updater.compute_loss, [0]

    def arrange(n: int, times: int = 1) -> None:
        def pressed(self: Updater, batch: Any) -> Any:
            loss = compute_loss(self, batch)
            count[0] += 1
            for _ in range(times if count[0] == n else 0):
                signal.raise_signal(signal.SIGINT)
            return loss

        monkeypatch.setattr(Updater, "compute_loss", pressed)

    return arrange


def kept_command(result: Result) -> list[str]:
    """The arguments of the command that the message names."""
    (line,) = re.findall("^Continue with: dmamba (.*)$", result.stderr, flags=re.MULTILINE)
    return shlex.split(line)


def assert_equal_files(first: str, second: str) -> None:
    """Check that two model files differ in nothing, their optimisers included."""
    one, two = (everything_in(DecisionMamba.load(path)) for path in (first, second))
    assert differences(one, two) == []


def test_ctrl_c_keeps_the_model_and_the_run_goes_on_exactly(press: Callable[..., None]) -> None:
    options = ["--option", "top_fraction=0.5"]
    train(*options, "--output", "whole")
    press(3)
    result = run(*SIX, *options, "--output", "out here", exit_code=130)
    assert result.stderr.splitlines()[-1] == "Interrupted."
    assert not Path("out here/model.zip").exists()
    again = kept_command(result)
    assert again == ["train", "--resume", "out here/checkpoints/model_3_steps.zip"]
    run(*again, *options)
    assert_equal_files("whole/model.zip", "out here/model.zip")


def test_ctrl_c_in_the_last_update(press: Callable[..., None]) -> None:
    train("--output", "whole")
    press(6)
    result = run(*SIX, "--output", "out", exit_code=130)
    assert "--resume" not in result.stderr
    assert "dmamba evaluate out/checkpoints/model_6_steps.zip" in result.stderr
    assert_equal_files("whole/model.zip", "out/checkpoints/model_6_steps.zip")


def test_ctrl_c_before_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    train("--output", "out", "--checkpoint-every", "2", updates=2)
    before = sorted(Path("out").rglob("*"))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for where in ("fit", "__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(DecisionMamba, where, interrupt)
            result = run("train", DATASET, *TINY, "--output", "out", "--overwrite", exit_code=130)
        assert result.stderr.splitlines() == ["Nothing was trained.", "Interrupted."], where
    assert sorted(Path("out").rglob("*")) == before
    monkeypatch.setattr(DecisionMamba, "fit", interrupt)
    result = run("train", "--resume", "out/model.zip", "--updates", "5", exit_code=130)
    assert "Nothing was trained since out/model.zip." in result.stderr
    assert kept_command(result) == ["train", "--resume", "out/model.zip"]


def test_ctrl_c_twice_keeps_no_half_of_an_update(
    press: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_ONE_PRESS_SECONDS", 0.0)
    press(4, times=2)
    output = ["--overwrite", "--output", "out"]
    result = run(*SIX, *output, "--checkpoint-every", "2", exit_code=130)
    assert "in the middle of update 4, and is not kept" in result.stderr
    assert kept_command(result)[2] == "out/checkpoints/model_2_steps.zip"
    assert [path.name for path in Path("out/checkpoints").iterdir()] == ["model_2_steps.zip"]
    press(7, times=2)  # the third one of this run, which has no checkpoint of its own
    result = run(*SIX, *output, exit_code=130)
    assert "Continue with" not in result.stderr


def test_a_checkpoint_that_cannot_be_written(press: Callable[..., None]) -> None:
    Path("out").mkdir()
    Path("out/checkpoints").write_text("a file", encoding="utf-8")
    press(3)
    result = run("train", DATASET, *TINY, "--updates", "6", "--output", "out", exit_code=1)
    assert "out/checkpoints" in result.stderr
    assert "Kept" not in result.stderr


def test_settings_that_are_not_the_recipes_are_named() -> None:
    (line,) = [line for line in train().stdout.splitlines() if "recipe" in line]
    default = DecisionMambaConfig()
    assert f"hidden_size=16 ({default.hidden_size}" in line
    assert "dropout" not in line
    assert "n_updates" not in line  # which the data decides
    resumed = run("train", "--resume", "runs/cartpole-tiny-v0/model.zip", "--updates", "1")
    assert line in resumed.stdout
    assert describe_changes(default, None) is None
    longer = get_task("hopper-medium-v2").config(n_updates=10)  # its warm-up follows
    assert describe_changes(longer, get_task("hopper-medium-v2")) == "n_updates=10 (100000)"


def test_every_evaluation_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for as_json in (False, True):
        if not as_json:  # then a progress bar is drawn on stderr all the while
            monkeypatch.setenv("FORCE_COLOR", "1")
        output = ["--overwrite", "--eval-every", "2", *(["--json"] if as_json else [])]
        result = train(*output)
        found, other = result.stdout, result.stderr
        if as_json:
            json.loads(found)
            found, other = other, found
        pattern = r"update (\d+): mean return (\S+), standard deviation \S+, 5 episodes\n"
        lines = re.findall(pattern, found)
        assert [int(update) for update, _ in lines] == [2, 4, 6]
        assert "mean return" not in other
        log = Path("runs/cartpole-tiny-v0/progress.csv").read_text(encoding="utf-8")
        rows = csv.DictReader(log.splitlines())
        logged = [float(row["eval/mean_reward"]) for row in rows if row["eval/mean_reward"]]
        assert [float(mean) for _, mean in lines] == [pytest.approx(x, abs=0.006) for x in logged]
        monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_every_field_reads_back_from_text() -> None:
    config = DecisionMambaConfig(dt_rank=5, decay_updates=7, warmup_updates=3, channel_mixing=False)
    texts = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        texts.append(f"{field.name}={text}")
    values = parse_settings(texts)
    assert DecisionMambaConfig(**values) == config
    for name, value in values.items():
        assert type(value) is type(getattr(config, name)), name


def test_settings() -> None:
    for text, expected in (
        ("dt_rank=none", {"dt_rank": None}),
        ("dt_rank = 4", {"dt_rank": 4}),
        ("n_updates=10_000", {"n_updates": 10_000}),
        ("channel_mixing=No", {"channel_mixing": False}),
        ("adam_betas=(0.9, 0.95)", {"adam_betas": (0.9, 0.95)}),
        ("backend=a=b", {"backend": "a=b"}),
    ):
        assert parse_settings([text]) == expected
    for texts, setting in (
        (["dt_rank=few"], "dt_rank"),
        (["channel_mixing=maybe"], "channel_mixing"),
        (["adam_betas=0.9"], "adam_betas"),
        (["learning_rate="], "learning_rate"),
        (["=3"], ""),
        (["dropout=0.1", "dropout = 0"], "dropout"),
    ):
        with pytest.raises(ConfigError) as raised:
            parse_settings(texts)
        assert raised.value.setting == setting


def test_options_of_the_dataset_and_a_resumed_run() -> None:
    option = ("--option", "top_fraction=0.5")
    document = json.loads(train(*option, "--output", "out", "--json").stdout)
    assert document["dataset"]["episodes"] == 6
    result = run("train", DATASET, *TINY, "--overwrite", "--option", "top=1", exit_code=1)
    assert "DatasetError: no option of a Minari id" in result.stderr
    assert "is not a NAME=VALUE" in run("train", DATASET, "--option", "top", exit_code=2).stderr
    resume = ("train", "--resume", "out/model.zip", "--updates", "2")
    assert "--dataset and --option" in run(*resume, exit_code=1).stderr
    assert "Note" not in run(*resume, *option).stderr
    assert "Note: the run has learned from" in run(*resume, "--dataset", DATASET).stderr


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_TASK", DATASET)
    monkeypatch.setattr(demo, "_QUICK_UPDATES", 2)
    text = run("demo", "--updates", "3", "--episodes", "2").stdout
    assert re.search(r"the data's mean return of \d+\.\s*$", text)
    for name in ("model.zip", "returns.png", "report.json", "progress.csv"):
        assert Path("runs/demo", name).is_file()
        assert f"wrote runs/demo/{name}" in text
    result = run("demo", "--quick", "--json")
    document = json.loads(result.stdout)
    assert document["quick"] is True
    assert document["config"]["n_updates"] == 2
    assert document["report"]["results"][0]["returns"][demo._QUICK_EPISODES - 1 :] != []
    assert all(path.startswith("runs/demo-quick/") for path in document["files"].values())
    assert result.stderr.count("scores mean nothing") == 2


def test_a_dataset_without_an_environment(tmp_path: Path) -> None:
    source = data.load_trajectories(DATASET)
    replace(source, env_id=None, env_kwargs={}).save(tmp_path / "store")
    small = [*TINY, "--updates", "2", "--output", "out"]
    result = run("train", "CartPole-v1", "--dataset", str(tmp_path / "store"), *small)
    assert "--env" not in result.output
    model = DecisionMamba(None, n_updates=1, hidden_size=8, n_layers=1).fit(tmp_path / "store")
    model.save(tmp_path / "nowhere.zip")
    assert "--env ID" in run("evaluate", "nowhere.zip", "--target", "9", exit_code=1).output
    more = ("--resume", "nowhere.zip", "--dataset", str(tmp_path / "store"), "--updates", "1")
    result = run("train", *more, "--output", "again")
    assert "next: dmamba evaluate again/model.zip --env ID" in result.output
    run("evaluate", "again/model.zip", "--target", "9", "--env", "CartPole-v1", "--episodes", "1")


def test_warnings_are_one_line_and_advice_can_be_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"observations": np.zeros((6, 2)), "rewards": np.ones(6), "terminals": np.ones(6)}
    space = gym.spaces.Box(-np.inf, np.inf, (1,))
    loaded = data.load_trajectories(
        {**steps, "actions": np.zeros((6, 1))}, action_space=gym.spaces.Box(-1, 1, (1,))
    )
    replace(loaded, action_space=space).save(tmp_path / "wide")
    error = run("data", "info", "wide", exit_code=1).output
    option = shlex.split(error.partition("on the command line, ")[2])
    assert option[0] == "--option"
    run("data", "info", "wide", *option)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with command_output(as_json=False, debug=False):
            warn_caller("look out")
    assert capsys.readouterr().err == "Warning: look out\n"
