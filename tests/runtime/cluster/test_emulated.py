"""Clusters of emulated devices: who is which is known before anything begins, and all are or none is."""

from pathlib import Path
from typing import Any

import pytest

from pac_core.contracts.cluster import Cluster
from pac_core.errors import BadInput, RunFailed
from pac_core.planning.cards import card
from pac_core.planning.make import FAR
from pac_core.registry import Registry
from pac_core.runtime.cluster_crew import crew_for

CARD = "jetson-nano"


def test_devices_that_compute_and_devices_that_emulate_are_not_mixed(run: Any, home: Any) -> None:
    home.hand("kitchen", emulate=CARD)
    home.hand("garage")
    with pytest.raises(BadInput, match="'kitchen' emulates jetson-nano, and this one would compute: give --emulate"):
        run(devices=str(home.file("kitchen")))
    with pytest.raises(BadInput, match="'garage' computes, and this one emulates jetson-nano: start its worker with"):
        run(devices=str(home.file("kitchen", "garage")), emulate=CARD)


def test_emulated_devices_are_planned_for_by_their_cards(config: Any, home: Any) -> None:
    home.hand("kitchen", emulate="raspberry-pi-5")
    given = config(devices=str(home.file("kitchen")), emulate=CARD)
    crew = crew_for(given, Registry())
    assert crew is not None
    found: list[Cluster] = []

    def look() -> None:
        with crew:
            found.append(crew.devices)
            raise RunFailed("seen enough")

    with pytest.raises(RunFailed, match="seen enough"):
        look()
    assert found[0].devices == (card(CARD).device("desk"), card("raspberry-pi-5").device("kitchen"))
    assert found[0].default == FAR


def test_workers_wait_by_their_own_cards(run: Any, home: Any, tmp_path: Path) -> None:
    """A run through the stages, with the leader's memory and the worker's."""
    hand = home.hand("kitchen", emulate="raspberry-pi-5")
    found = run(
        devices=str(home.file("kitchen")), emulate=CARD, scheduler="pipeline", epochs=2, fill="train-while-fill"
    )
    assert found.metrics["emulated"] is True
    assert [stage["devices"] for stage in found.metrics["plan"]["stages"]] == [["desk"], ["kitchen"]]
    assert not list(found.output.glob("adapter*"))
    hand.wait_for("is done")
