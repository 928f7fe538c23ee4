"""``pac profile``: measure devices with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.contracts.cluster import DeviceProfile
    from pac_core.planning.profile_file import FittedPass, ProfileFile

EPILOG = (
    "Example: pac profile --model ./bert-base --devices 2 --output profile.json\n\n"
    "On the workers of a cluster: pac profile --model ./t5-base --cluster cluster.yaml --output profile.json. Only the "
    "model's configuration is read and sent: layers with random weights take as long as others."
)


def profile(
    model: Annotated[str, typer.Option(help="Folder or hub id of the model; weights need not be there.")],
    output: Annotated[Path, typer.Option(help="File for the profile.")] = Path("profile.json"),
    cluster: Annotated[Path | None, typer.Option(help="Cluster file, whose devices are measured.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes of this machine that are measured at once.")] = 1,
    task: Annotated[
        str, typer.Option(help="classification, regression, seq2seq or causal-lm; auto: the usual one of the model.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of an optimiser step, for the job to plan for.")] = 32,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of the longest samples that are measured.")] = 128,
    adapter: Annotated[str, typer.Option(help="Name of the adapter.")] = "parallel",
    reduction: Annotated[int, typer.Option(min=1, help="k: side widths are the backbone's / k.")] = 8,
    store: Annotated[str, typer.Option(help="Cache store.")] = "disk",
    cache_dir: Annotated[Path | None, typer.Option(help="Cache folder, on whose disk entries are written.")] = None,
    cache_dtype: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "bfloat16",
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="That the passes may take on each device.")] = 12.0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of a run's configuration.")
    ] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Measure devices with a model: time of each pass, cache, memory, and the links between all of them."""
    from pac_core.cluster import is_cluster
    from pac_core.config import RunConfig, parse_setting  # torch takes seconds to import; --help shall not
    from pac_core.files import check_writable_file
    from pac_core.planning.profile_file import write_profile
    from pac_core.profiler import NO_DATA, Profiler

    if cluster is not None and devices != 1:
        raise BadInput("--cluster measures the devices of its file; leave --devices out")
    if cluster is not None and not is_cluster(str(cluster)):
        raise BadInput(f"--cluster {cluster}: give a cluster file, as in cluster.yaml")
    flags: dict[str, Any] = {
        "model": model,
        "train": NO_DATA,
        "task": task,
        "batch_size": batch_size,
        "max_length": max_length,
        "adapter.name": adapter,
        "adapter.reduction": reduction,
        "cache.store": store,
        "cache.dir": cache_dir,
        "cache.dtype": cache_dtype,
        "devices": str(cluster or devices),
    }
    overrides = flags | dict(parse_setting(text) for text in settings or [])
    check_writable_file(output, "--output")
    config = RunConfig.build({}, overrides)
    found = Profiler(config, seconds, Registry(blocked=no_plugin or ()), say).run()
    write_profile(output, found)
    if as_json:
        emit(found.to_json())
    else:
        _print(found)
    say(f"saved to {output}; try: pac plan --model {model} --profile {output}")


def _print(found: ProfileFile) -> None:
    console = Console(markup=False, emoji=False)
    console.print(_speeds(found))
    console.print(_devices(found))
    if found.cluster.links:
        console.print(_links(found))


def _speeds(found: ProfileFile) -> Table:
    """How fast passes are, and how well that is known."""
    table = Table("device", "pass through a layer", "at least", "GFLOP/s", "median error", "largest")
    for device in found.cluster.devices:
        for fitted in found.fits[device.name]:
            pace = pace_of(device, fitted)
            table.add_row(
                device.name,
                f"{fitted.stream} {fitted.name}",
                f"{1000 * pace.layer_s:.2f} ms",
                f"{pace.flops / 1e9:.1f}",
                f"{fitted.median_error:.0%}",
                f"{fitted.largest_error:.0%}",
            )
    return table


def pace_of(device: DeviceProfile, fitted: FittedPass) -> Any:
    """The pace that a pass of a device was fitted with."""
    assert device.paces is not None
    name = fitted.name.replace(" ", "_")
    return getattr(device.paces if name.startswith("head") else device.paces.of(fitted.stream), name)


def _devices(found: ProfileFile) -> Table:
    table = Table("device", "memory free", "cache written", "cache read", "optimiser", "measured")
    for device in found.cluster.devices:
        points = found.fits[device.name][0].points
        most = max(points, key=lambda point: point.rows * point.tokens)
        table.add_row(
            device.name,
            f"{device.memory_bytes / 1e9:.2f} GB",
            _rate(device.write_bytes_per_s),
            _rate(device.disk_bytes_per_s),
            _rate(device.update_bytes_per_s),
            f"{len(points)} sizes, to {most.rows} x {most.tokens} tokens",
        )
    return table


def _rate(bytes_per_s: float | None) -> str:
    return "" if bytes_per_s is None else f"{bytes_per_s / 1e6:.0f} MB/s"


def _links(found: ProfileFile) -> Table:
    table = Table("link", "Mbit/s", "latency")
    for (one, other), link in found.cluster.links.items():
        table.add_row(f"{one} to {other}", f"{link.bits_per_second / 1e6:.0f}", f"{1000 * link.latency_s:.2f} ms")
    return table


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(profile)
