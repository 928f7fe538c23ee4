"""Checkpoints: everything a run needs to go on, in one safetensors file that is replaced as a whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pac_core.contracts.cluster import Cluster
from pac_core.errors import BadInput
from pac_core.files import read_json, write_json, write_tensors
from pac_core.shares import evened

STATE_NAME = "state.safetensors"
BEST_NAME = "best.safetensors"
FILL_NAME = "fill.json"
SHARES_NAME = "shares.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the epoch under way, from 1.
        step: optimiser steps done in it.
        loss_sum: sum of the step losses of this epoch.
        seconds: training time spent in this epoch so far.
        records: finished epochs, as in ``metrics.json``.
        best: best value of the watched metric so far, None before the first evaluation.
        stale: epochs since then.
        before: evaluation before training.
        backbone_samples: samples of this epoch for which the backbone ran.
        bytes_sent: tensors that devices sent to each other in this epoch's steps.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    records: tuple[dict[str, Any], ...] = ()
    best: float | None = None
    stale: int = 0
    before: dict[str, float] | None = None
    backbone_samples: int = 0
    bytes_sent: int = 0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """From ``vars()`` that went through JSON."""
        return cls(**{**plain, "records": tuple(plain["records"])})


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write model, optimiser and progress; ``identity`` is what must agree to resume."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    text = json.dumps({"progress": vars(progress), "identity": identity})
    write_tensors(path, tensors, {"pac": text})


def check_checkpoint(path: Path, identity: dict[str, Any]) -> None:
    """Make sure that a run can go on from ``path``, before it does anything that takes long.

    Raises:
        BadInput: as `load_checkpoint`.
    """
    _check_identity(path, _read(path)[1]["identity"], identity)


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> Progress:
    """Restore what `save_checkpoint` wrote; returns where the run stands.

    Raises:
        BadInput: damaged, or of a run with other settings or data; the text names the first difference.
    """
    tensors, meta = _read(path)
    _check_identity(path, meta["identity"], identity)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress.of(meta["progress"])


def noted_shares(path: Path, devices: Cluster, resume: bool) -> list[float]:
    """How much each device works on, by rank: as much as it is fast, noted in ``path``.

    On ``resume`` as much as the stopped run has noted, if it had the same devices: speeds are measured anew each time,
    and who works on a sample decides which dropout it meets.
    """
    now = dict(zip((d.name for d in devices.devices), evened([d.flops for d in devices.devices])))
    if resume and path.exists():
        with contextlib.suppress(BadInput, TypeError, ValueError):  # a damaged note costs the last bits only
            noted: Any = read_json(path, "the shares of a stopped run")
            shares = (
                [float(noted[name]) for name in now] if isinstance(noted, dict) and noted.keys() == now.keys() else []
            )
            if shares and all(0 < share <= 1 for share in shares):
                return shares
    write_json(path, now)
    return list(now.values())


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["pac"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise BadInput(f"{path}: not a usable checkpoint ({error}); run without --resume to start anew") from error


def _check_identity(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted(now.keys() | saved.keys(), key=lambda key: (key == "backbone", key)):  # a setting explains it
        if saved.get(key) != now.get(key):
            raise BadInput(
                f"{path}: cannot resume: {key} was {saved.get(key)!r} and is {now.get(key)!r}; "
                "use the same settings, or run without --resume to start anew"
            )
