"""One device of a run that shares out a backbone, as a process: says on its standard output how much memory it took."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import pac_core.runtime.slices as slices
from pac_core.backbones import load_backbone, local_folder
from pac_core.contracts.backbone import BackboneSource
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.registry import Registry
from pac_core.weights import describe
from pac_plugins.transports import make_local


def memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM``, the peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def share(transport: Transport, model: str, layers: Any, dtype: str, root: str, before: int) -> dict[str, Any]:
    """One sharing-out, and how far its peak is above ``before``; with a ``root`` workers see no disk but their own."""
    registry, sent = Registry(), {}
    Path("/proc/self/clear_refs").write_text("5")
    if transport.rank == 0:
        backbone = describe(model, getattr(torch, dtype), registry, digests=True)
        recipients = {rank: slices.Recipient(f"d{rank}", [layers]) for rank in range(1, transport.size)}
        sent = slices.serve_slices(transport, model, backbone, recipients)
    else:
        slices.local_folder = (lambda path: None) if root else local_folder
        backbone = slices.open_slices(transport, 0, Path(root) / str(transport.rank), registry)(layers)
    grown = memory("VmHWM") - before
    backbone.release(keep_head=False)
    return {"grown": grown, "sent": sum(sent.values()), "fingerprint": backbone.info.fingerprint}


def main(rank: int, peers: list[str], warm_up: str, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    load_backbone(BackboneSource(warm_up), Registry())  # what is imported and set up once is not the slice's
    with make_local(TransportOptions(rank, [Peer(peer) for peer in peers])) as transport:
        before = memory("VmRSS")
        found = [share(transport, **told, before=before) for told in rounds]
        transport.barrier()
    return found


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
