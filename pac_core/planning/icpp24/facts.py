"""What the paper printed: read from ``facts.json``, which names its source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

DATASETS = ("mrpc", "stsb", "sst2", "qnli")


@dataclass(frozen=True)
class Facts:
    """The paper's setting, tables and figures, as they stand in ``facts.json``."""

    data: Mapping[str, Any]

    @classmethod
    def load(cls) -> Facts:
        """Those that come with the package."""
        return cls(json.loads((resources.files(__package__) / "facts.json").read_text(encoding="utf-8")))

    def hours(self, cell: str) -> float:
        """A number of table 2; ``cell`` is such as ``t5-base/adapters/standalone/mrpc``."""
        model, *row, dataset = cell.split("/")
        found: float = self.data["table2_hours"][model]["/".join(row)][DATASETS.index(dataset)]
        return found

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows of table 2."""
        return tuple(self.data["table2_hours"]["t5-base"])

    def samples(self, dataset: str) -> int:
        """Training samples of a data set."""
        return int(self.data["setup"]["train_samples"][dataset])

    def epochs(self, dataset: str) -> int:
        """Epochs that the paper trained on a data set."""
        return int(self.data["setup"]["epochs"][dataset])
