"""What all commands have in common: help, usage errors, exit codes, streams, completion, and being stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from pac_core.cli import app

COMMANDS = [
    *("demo", "finetune", "evaluate", "predict", "chat", "plugins", "cache"),
    *("keys", "worker", "devices", "profile", "plan", "simulate"),
]
CACHE_COMMANDS = ["list", "stat", "verify", "prune", "clear"]
KEYS_COMMANDS = ["new", "allow", "list"]
GROUPS = {"cache": CACHE_COMMANDS, "keys": KEYS_COMMANDS}
EACH = [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS.items() for name in names]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pac_core.cli", *map(str, arguments)]


@pytest.mark.parametrize("path", EACH, ids=" ".join)
def test_help_teaches_with_an_example(pac: Any, path: list[str]) -> None:
    ended = pac(*path, "--help")
    assert (ended.code, ended.err) == (0, "")
    text = " ".join(ended.out.split())
    assert f"Example: pac {path[0]}" in text
    if path not in (["cache"], ["keys"], ["worker"]):
        assert "--json" in text
    assert all(len(line) <= 80 for line in ended.out.splitlines())


def test_every_command_is_tested_here() -> None:
    assert sorted(app.COMMANDS) == sorted(COMMANDS)


def test_defaults_in_the_help_of_finetune_are_those_of_the_configuration(pac: Any) -> None:
    from pac_core.config import RunConfig

    text = " ".join(pac("finetune", "--help").out.replace("│", " ").split())
    plain = RunConfig(model="m", train="t").plain()
    flat = plain | {f"{part}.{k}": v for part in ("optimizer", "cache", "adapter") for k, v in plain[part].items()}
    keys = ("task", "output", "epochs", "optimizer.lr", "batch_size", "seed", "adapter.name", "adapter.reduction")
    for key in (*keys, "cache.store", "cache.dtype", "devices"):
        assert f"(default: {flat[key]})" in text, key


def test_the_version_is_told(pac: Any) -> None:
    from importlib.metadata import version

    assert pac("--version").out == f"pac {version('pac-core')}\n"


def test_help_and_usage_errors_do_not_import_torch() -> None:
    code = f"""
import sys
from pac_core.cli.app import run
for path in {EACH}:
    assert run([*path, "--help"]) == 0
    assert run([*path, "--nope"]) == 2
assert run(["plugins"]) == 0
print([name for name in ("torch", "transformers", "numpy", "sklearn") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "No such command 'nope'; see: pac --help"),
        (["--nope"], "No such option: --nope"),
        (["cache", "nope"], "No such command 'nope'; see: pac cache --help"),
        (["cache", "prune", "--nope"], "No such option: --nope; see: pac cache prune --help"),
        (["finetune", "--epochs", "abc"], "Invalid value for '--epochs'"),
        (["finetune", "one.yaml", "two.yaml"], "two.yaml"),
        (["finetune", "--model"], "'--model' requires an argument"),
        (["evaluate", "--adapter", "x"], "Missing option '--data'; see: pac evaluate --help"),
        (["predict", "text"], "Missing option '--adapter'"),
        (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
    ],
)
def test_a_misused_command_line_is_one_line(pac: Any, arguments: list[str], told: str) -> None:
    assert told in pac(*arguments).refusal


@pytest.mark.parametrize("arguments", [[], ["cache"]], ids=["pac", "pac cache"])
def test_without_arguments_there_is_help(pac: Any, arguments: list[str]) -> None:
    ended = pac(*arguments)
    assert ended.code in (0, 2)  # which of them depends on the version of typer
    assert "Usage: " in ended.out + ended.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
        (typer.Exit(1), 1, ""),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
    ],
    ids=["interrupt", "abort", "exit", "full"],
)
def test_what_a_command_raises_becomes_an_exit_code(
    pac: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("pac_core.cli.plugins.Registry", fails)
    ended = pac("plugins")
    assert (ended.code, ended.out, ended.err) == (code, "", told)


@pytest.mark.parametrize("place", ["closed pipe", "/dev/full", "closed"])
def test_output_that_nobody_reads_is_no_traceback(place: str) -> None:
    with subprocess.Popen(
        ["bash", "-c", '"$0" "$@" >&-', *command("plugins")] if place == "closed" else command("plugins"),
        stdout=open("/dev/full", "w") if place == "/dev/full" else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is not None:
            process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    assert process.returncode in (0, 1)


def test_shells_complete_commands_and_options(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        given = {"_PAC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(["pac"], env=os.environ | PATH | given, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    assert complete("pac fine") == ["finetune"]
    assert complete("pac cache p") == ["prune"]
    assert complete("pac finetune --cache") == ["--cache-dir", "--cache-dtype"]
    home = {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = subprocess.run(["pac", "--install-completion", "bash"], env=os.environ | PATH | home, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / ".bash_completions" / "pac.sh").is_file()


PATH = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_run_that_is_stopped_says_how_to_go_on(checkpoint: Any, write: Any, reviews: Any, tmp_path: Path) -> None:
    given = ["--model", checkpoint("bert"), "--train", write("train.jsonl", reviews), "--output", tmp_path / "out"]
    arguments = [*given, "--cache-dir", tmp_path / "cache", "--epochs", 100_000, "--reduction", 4, "--batch-size", 4]
    with subprocess.Popen(
        command("finetune", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("trainable parameters: ")
        assert process.stderr.readline().startswith("epoch 1 (fill): ")
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert told[-1] == "stopped; the same command with --resume goes on from here"
    assert all(line.startswith("epoch ") for line in told[:-1])
    assert (tmp_path / "out" / "checkpoint" / "state.safetensors").is_file()


def test_bars_show_speed_time_left_and_cache_hits_on_a_terminal() -> None:
    from rich.console import Console

    from pac_core.cli.progress import RunView
    from pac_core.events import EpochDone, RunStarted, StepDone

    screen = io.StringIO()
    record = {"epoch": 1, "phase": "cached", "seconds": 2.0, "loss": 0.5, "cache_hits": 900}
    with RunView(Console(file=screen, force_terminal=True, width=80, color_system=None)) as view:
        view(RunStarted({"max_length": 32}, 1234, truncated=5))
        for done in (300, 600, 900):
            view(StepDone(1, "cached", done, 1200, 0.4321, done))
            time.sleep(0.15)
        view(EpochDone(record, {"loss": 0.1, "accuracy": 0.75}))
    shown = screen.getvalue()
    for text in ("loading model and data", "trainable parameters: 1,234", "5 samples were cut to 32 tokens"):
        assert text in shown
    for text in ("epoch 1, cached", "900/1,200", "samples/s", "00:0", "loss 0.432", "900 hits"):
        assert text in shown
    assert "epoch 1 (cached): 2.0 s, loss 0.500, cache hits 900, accuracy 0.750" in shown


def test_the_demo_compares_with_lora(checkpoint: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from rich.console import Console

    from pac_core.cli.demo import compare, comparison_table
    from pac_core.demo_data import train_samples

    result = compare(str(checkpoint("bert")), tmp_path, 2, train_samples()[:60], train_samples()[:20])
    assert result["pac"]["epochs"][0]["backbone_samples"] == 60
    assert result["pac_again"]["epochs"][0]["backbone_samples"] == 0
    assert len(result["lora"]["epochs"]) == 2
    json.dumps(result, allow_nan=False)
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "times LoRA's speed" in shown
    assert "…" not in shown
