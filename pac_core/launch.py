"""What torchrun tells each process that it has started. Imports no torch, so that commands can ask at once."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process's place among those that run the same command.

    Attributes:
        rank: its number; 0 leads.
        size: how many there are.
        here: how many of them are on this machine.
    """

    rank: int
    size: int
    here: int

    @classmethod
    def found(cls) -> Launch | None:
        """By the variables that torchrun sets; None where this process was started in another way."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        rank, size, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return cls(rank, size, here)

    @property
    def leads(self) -> bool:
        """Whether this process reads the data, writes the files and speaks to people."""
        return self.rank == 0


def leads_here() -> bool:
    """Whether this process speaks to people; one that was started alone does."""
    launch = Launch.found()
    return launch is None or launch.leads
