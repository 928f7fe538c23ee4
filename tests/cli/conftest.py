"""The ``pac`` command in this process, and adapters trained with it on tiny models."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pac_core.cli.app import run

Rows = Sequence[dict[str, Any]]

KIND_WORDS = ("good", "great", "fine", "happy", "love")
UNKIND_WORDS = ("bad", "awful", "sad", "poor", "hate")
THINGS = ("film", "one", "two", "three", "red", "blue")


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def refusal(self) -> str:
        """The one line of a command that met bad input."""
        assert self.code == 2, self
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture
def pac(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """Runs ``pac`` with these arguments; everything that reaches stdout and stderr counts."""
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "caches"))
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return call


def review_rows() -> Rows:
    """Short texts that one word makes kind or unkind."""
    return [
        {"text": f"the {thing} was {word}", "label": label}
        for thing in THINGS
        for label, words in (("kind", KIND_WORDS), ("unkind", UNKIND_WORDS))
        for word in words[:3]
    ]


def score_rows() -> Rows:
    """Pairs with a number: 4.5 where both texts are of one kind, else 0.5."""
    mixed = [(a, b, 4.5) for a in KIND_WORDS for b in KIND_WORDS] + [(a, b, 0.5) for a in KIND_WORDS for b in THINGS]
    return [{"sentence1": f"the {a} film", "sentence2": f"the {b} film", "score": n} for a, b, n in mixed]


def answer_rows() -> Rows:
    """Questions with one answer each."""
    answers = zip(THINGS, ("good", "bad", "happy", "sad", "love", "hate"))
    return [{"prompt": f"what is the {thing}", "completion": f"it was {word}"} for thing, word in answers] * 3


def chat_rows() -> Rows:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in answer_rows()
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Rows], Path]:
    """Writes rows as JSON lines into the test's folder."""

    def to(name: str, rows: Rows) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return to


@pytest.fixture(scope="session")
def trained(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of an adapter trained by ``pac finetune``, by name; shared between tests, so only to be read."""
    kinds: dict[str, tuple[str, Rows, list[str]]] = {
        "reviews": ("bert", review_rows(), []),
        "scores": ("bert", score_rows(), ["--task", "regression", "--set", "columns.label=score"]),
        "t5": ("t5", answer_rows(), []),
        "gpt2": ("gpt2", answer_rows(), []),
        "llama-chat": ("llama", chat_rows(), []),
    }
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            family, rows, more = kinds[name]
            folder = tmp_path_factory.mktemp(name)
            data = folder / "train.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            given = ["--model", checkpoint(family), "--train", data, "--eval", data, "--output", folder / "adapter"]
            epochs = 12 if family == "bert" else 30
            fast = [
                "--epochs",
                epochs,
                "--lr",
                0.02,
                "--batch-size",
                8,
                "--reduction",
                2,
                "--cache-dir",
                folder / "cache",
            ]
            text = ["--set", "generation.eval_samples=3", "--set", "generation.max_new_tokens=8"]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert run(["finetune", *map(str, [*given, *fast, *text, *more, "--json"])]) == 0
            made[name] = folder / "adapter"
        return made[name]

    return of


@pytest.fixture
def data_of() -> Callable[[Path], Path]:
    """The file that an adapter was trained on."""
    return lambda adapter: adapter.parent / "train.jsonl"


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def reviews() -> Rows:
    return review_rows()
