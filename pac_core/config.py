"""The configuration of a run: YAML and command line in, one validated frozen tree out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator

from pac_core.contracts.adapter import AdapterConfig
from pac_core.errors import BadInput
from pac_core.settings import Part, explain, read_yaml


def _utf8(path: Path | None) -> Path | None:
    try:
        str(path or "").encode()
    except UnicodeEncodeError:  # it is to stand in JSON, and in messages to other devices
        raise ValueError("its name is not UTF-8; choose another") from None
    return path


class CacheConfig(Part):
    """Where and how taps are kept."""

    store: str = "disk"
    """Name of the store; a wrapping store is written before the one it wraps, as in lz4+disk."""
    dir: Path | None = None
    """Folder of the cache; one below the user's cache folder for each backbone if left out."""
    dtype: Literal["float64", "float32", "bfloat16", "int8"] = "bfloat16"
    """Number format of the entries: float32 is exact, bfloat16 half as large, int8 a quarter."""
    budget_bytes: int | None = Field(default=None, gt=0)
    """Most bytes the cache may take; no limit if left out."""
    when_full: Literal["error", "evict"] = "error"
    """What happens then: stop with an error, or drop the entries used longest ago."""
    share: bool = False
    """Let one folder hold entries of several backbones."""

    _named = field_validator("dir")(_utf8)


class OptimizerConfig(Part):
    """AdamW and its schedule."""

    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of the side network."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the wide layer of a classification or regression head; if left out 0.08 of lr times the
    square root of the number of classes."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay of matrices; norms, gates and biases have none."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Part of all steps in which the rate rises; it then falls to 0 by `schedule`."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; not at all if null."""


class GenerationConfig(Part):
    """How answers are generated in evaluation and prediction."""

    max_new_tokens: int = Field(default=64, gt=0)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token; above 0 samples."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability."""
    eval_samples: int = Field(default=200, ge=0)
    """Samples of the evaluation file for which answers are generated and scored (the loss uses all)."""


class RunConfig(Part):
    """Everything that decides what a run does."""

    model: str = Field(min_length=1)
    """Folder or hub id of the frozen model."""
    train: str = Field(min_length=1)
    """Training data: a .jsonl, .csv, .tsv or .json file, or a data set id."""
    eval: str | None = None
    """Evaluation data, in the same form."""
    output: Path = Path("pac-output")
    """Folder for the adapter, checkpoint and metrics."""
    task: Literal["auto", "classification", "regression", "seq2seq", "causal-lm"] = "auto"
    """What is predicted; told from the data if auto."""
    columns: dict[str, str] = Field(default={})
    """Columns by role where their names do not tell: {text: body, label: class}."""
    pair_encoding: Literal["auto", "apart", "joint"] = "auto"
    """Whether the backbone reads the texts of a pair apart or joined into one sequence; auto: apart for encoders."""
    adapter: AdapterConfig = AdapterConfig()
    """The side network."""
    cache: CacheConfig = CacheConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    generation: GenerationConfig = GenerationConfig()
    epochs: int = Field(default=3, gt=0)
    """Passes over the training data."""
    batch_size: int = Field(default=32, gt=0)
    """Samples of an optimiser step."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Samples of one forward and backward pass; the whole batch if left out."""
    max_length: int | None = Field(default=None, gt=1)
    """Longer texts are cut to this many tokens; without it they are an error beyond what the model takes."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Number format of the backbone; auto: bfloat16 for classification and regression if the cache rounds to it anyway
    and the processor multiplies it in hardware, else float32."""
    backbone_weights: Literal["auto", "native", "int8"] = "auto"
    """How the matrices of the backbone's layers are held: in its number format (native), or as int8 in about a quarter
    of float32's memory; auto: as the plan says, and natively without one."""
    fill: Literal["auto", "prefill", "train-while-fill"] = "auto"
    """prefill runs the backbone over sorted samples before epoch 1; train-while-fill does so as epoch 1 needs them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of initialisation, order and dropout."""
    early_stopping: int | None = Field(default=None, gt=0)
    """Stop after this many epochs without a better evaluation."""
    resume: bool = False
    """Go on from the checkpoint in `output`."""
    transport: str | None = None
    """Transport between devices; local if left out. torch is for processes that torchrun starts."""
    devices: str = "1"
    """Number of processes on this machine that train together, or a cluster file (.yaml) that names the machines;
    left out under torchrun, which has started them."""
    scheduler: str | None = None
    """What plans stages and device groups: single, data-parallel, pipeline, ...; if left out every device has the whole
    model."""
    emulate: str | None = None
    """A device card, such as jetson-nano: every device waits for as long as one of that kind would compute. Messages,
    cache and schedule are real; nothing is learnt, and no adapter is written."""
    plan: Path | None = None
    """A plan.json that pac plan, or a former run on the same devices, wrote."""

    _named = field_validator("output", "plan")(_utf8)

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """The configuration in a YAML file, with dotted ``overrides`` such as ``{"cache.store": "memory"}``.

        Raises:
            BadInput: no such file, not YAML, an unknown key (with the nearest known one) or a value out of range.
        """
        path = Path(path)
        tree, lines = read_yaml(path, "give a YAML configuration or the flags --model and --train")
        return cls.build(tree, overrides, source=str(path), lines=lines)

    @classmethod
    def build(
        cls,
        tree: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        source: str = "",
        lines: Mapping[str, int] | None = None,
    ) -> Self:
        """The configuration in a nested mapping, with dotted overrides; errors as in `load`.

        Args:
            tree: the mapping.
            overrides: values by dotted keys, which win.
            source: the file that ``tree`` was read from, and
            lines: where its keys stand there; for errors.
        """
        merged = _copy(tree)
        for key, value in (overrides or {}).items():
            _put(merged, key, value)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            kept = {key: line for key, line in (lines or {}).items() if key not in (overrides or {})}
            raise BadInput(explain(error, cls, source, kept, "give it in the configuration or as --{}")) from error

    def plain(self) -> dict[str, Any]:
        """The tree as JSON-ready data."""
        return self.model_dump(mode="json")


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of ``a.b=value``; the value is read as YAML.

    Raises:
        BadInput: no equals sign, or not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInput(f"--set {text}: write it as key=value, for example --set cache.dtype=float32")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {text}: the value is not valid YAML") from error


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise BadInput(f"--set {key}: '{part}' holds a value, not further keys")
    tree[last] = value
