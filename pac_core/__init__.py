"""PAC: fine-tune a personal language model with parallel adapters and an activation cache.

The names below are the public Python surface; they are imported when first used, so that ``import pac_core`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pac_core.cache import ActivationCache
    from pac_core.config import RunConfig
    from pac_core.contracts.adapter import AdapterConfig, BottleneckAdapterConfig, ParallelAdapterConfig
    from pac_core.examples import Task
    from pac_core.finetune import FineTuner, RunResult
    from pac_core.model import PacModel, get_pac_model
    from pac_core.planning.make import plan
    from pac_core.planning.simulate import simulate

_HOMES = {
    "ActivationCache": "pac_core.cache",
    "AdapterConfig": "pac_core.contracts.adapter",
    "BottleneckAdapterConfig": "pac_core.contracts.adapter",
    "FineTuner": "pac_core.finetune",
    "PacModel": "pac_core.model",
    "ParallelAdapterConfig": "pac_core.contracts.adapter",
    "RunConfig": "pac_core.config",
    "RunResult": "pac_core.finetune",
    "Task": "pac_core.examples",
    "get_pac_model": "pac_core.model",
    "plan": "pac_core.planning.make",
    "simulate": "pac_core.planning.simulate",
}

__all__ = [
    "ActivationCache",
    "AdapterConfig",
    "BottleneckAdapterConfig",
    "FineTuner",
    "PacModel",
    "ParallelAdapterConfig",
    "RunConfig",
    "RunResult",
    "Task",
    "get_pac_model",
    "plan",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pac_core' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
