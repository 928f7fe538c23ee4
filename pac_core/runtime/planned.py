"""Step 3 of a run: its plan."""

from __future__ import annotations

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster, Job
from pac_core.errors import BadInput
from pac_core.planning.make import plan, read_plan
from pac_core.planning.profile import analytic_profile, unquantisable
from pac_core.registry import Registry
from pac_core.runtime.load import Loaded
from pac_core.runtime.ranks import RankedPlan, ranked
from pac_core.runtime.stage import chain


def run_plan(config: RunConfig, loaded: Loaded, registry: Registry, cluster: Cluster) -> RankedPlan | None:
    """The plan in the file that the configuration names, or one that its scheduler makes; None if it names neither.
    Its devices have the ranks that they have in ``cluster``, in which the leader is the first.

    Raises:
        UnknownPlugin: there is no such scheduler.
        BadInput: the plan is for other devices, or for another model; it leaves devices out; or nothing fits.
    """
    names = [device.name for device in cluster.devices]
    if config.plan is not None:
        found = read_plan(config.plan, names)
    elif config.scheduler is None:
        return None
    else:
        model = loaded.model
        profile = analytic_profile(model.info, config.adapter, model.side.target, head=loaded.task.generates)
        profile = profile if config.backbone_weights == "auto" else unquantisable(profile)
        found = plan(profile, cluster, job_of(config, loaded), config.scheduler, registry)
    absent = [name for name in names if name not in found.devices]
    if absent:
        raise BadInput(
            f"the plan uses {found.size} of {len(names)} devices, without {', '.join(absent)}: take them off the "
            f"cluster file or give --devices {found.size}, leave --scheduler out, or choose another"
        )
    try:
        found.check(chain(loaded.model.info, loaded.model.side.target))
    except BadInput as error:
        raise error if config.plan is None else BadInput(f"{config.plan}: a plan for another model: {error}") from error
    return ranked(found, names)


def job_of(config: RunConfig, loaded: Loaded) -> Job:
    """What an optimiser step of a run works on."""
    lengths = [len(example) for example in loaded.train]
    dtype = str(loaded.model.info.dtype).removeprefix("torch.")
    return Job(config.batch_size, config.micro_batch_size, sum(lengths) / len(lengths), max(lengths), dtype)
