"""Every bundled side network passes the public suite."""

from typing import Any, ClassVar

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.testing import AdapterSuite


class TestParallel(AdapterSuite):
    adapter = "parallel"


class TestParallelFromRandomWeights(AdapterSuite):
    adapter = "parallel"
    settings: ClassVar[dict[str, Any]] = {"init": "random", "heads": 2}
    targets = (("bert", ENCODER), ("t5", DECODER))


class TestBottleneck(AdapterSuite):
    adapter = "bottleneck"
