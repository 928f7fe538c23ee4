"""The reproduction as text: Markdown tables, which read well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pac_core.planning.icpp24.beyond import PADDED, WAYS, Beyond
from pac_core.planning.icpp24.calibrate import CELLS
from pac_core.planning.icpp24.tables import Pair, Reproduction

GOAL = 2.0
"""How many times as fast as the paper a run is to be."""


def markdown(found: Reproduction) -> str:
    """All tables and figures: each cell is the paper's number, ours, and the difference in percent."""
    return "\n\n".join(
        [
            _summary(found),
            *_by_model("Table 2: hours", found.table2, "row"),
            *_by_model("Figure 9a: samples a second without the cache, by devices", found.figure9a, "system"),
            _section("Figure 10: devices of each stage, by devices", _grid(found.figure10, "model")),
            _section("Table 1: T5-Large, 16 samples, GB", _grid(found.table1, "technique")),
            *_by_model("Figure 8a: seconds a sample on one device", found.figure8a, "technique"),
            *_by_model("Figure 8b: most of a device, GB", found.figure8b, "technique"),
            *_by_model("Figure 11: hours on MRPC, by epochs", found.figure11, "run"),
        ]
    )


def beyond_markdown(found: Beyond) -> str:
    """Tables of hours by number of devices: in brackets how many times as fast as printed, and as our prediction of
    PAC as published."""
    told = found.to_json()
    return "\n\n".join([*(_beyond(int(devices), by_way) for devices, by_way in told.items()), _verdict(found)])


def _beyond(devices: int, by_way: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    models = list(next(iter(by_way.values())))
    lines = [["way", *models, "what it does"], ["---"] * (len(models) + 2)]
    lines += [[name, *(_gain(row[model]) for model in models), WAYS[name].why] for name, row in by_way.items()]
    return f"{devices} devices:\n\n" + "\n".join(_line(cells) for cells in lines)


def _gain(cell: Mapping[str, Any]) -> str:
    if cell["hours"] is None:
        return "—"
    return f"{cell['hours']:.3f} ({cell['times_paper']:.2f}, {cell['times_published']:.2f})"


def _verdict(found: Beyond) -> str:
    """Whether the goal is reached with what runs can do."""
    lines = []
    for devices, by_way in found.to_json().items():
        least = {
            name: min(cell["times_published"] or 0.0 for cell in row.values())
            for name, row in by_way.items()
            if not WAYS[name].quantised
        }
        best = max(least, key=lambda name: least[name])
        reached = "reached" if least[best] >= GOAL else "not reached"
        lines.append(
            f"- {devices} devices: twice as fast as PAC as published, on all three models, is {reached} without int8 "
            f"backbones. *{best}* is at least {least[best]:.2f} times as fast, "
            f"*{PADDED}* at least {least[PADDED]:.2f} times."
        )
    return "\n".join(lines)


def _summary(found: Reproduction) -> str:
    summary = found.summary()
    lines = [
        f"Calibrated on {', '.join(CELLS)}: {found.setting.forward_flops / 1e9:.0f} GFLOP/s forward and "
        f"{found.setting.backward_flops / 1e9:.0f} GFLOP/s backward, "
        f"{found.setting.memory_bytes / 1e9:.2f} GB of memory, "
        f"{found.setting.disk_bytes_per_s / 1e6:.0f} MB/s from the memory card.",
        f"- Table 2: out of memory or not is right for {summary['table2_out_of_memory_right']} of "
        f"{summary['table2_combinations']} combinations; over the other numbers the median error is "
        f"{summary['table2_median_error']:.1%}, the largest {summary['table2_largest_error']:.1%}.",
        f"- Figure 9a: median error {summary['figure9a_median_error']:.1%}, largest "
        f"{summary['figure9a_largest_error']:.1%}.",
        f"- Figure 10: {summary['figure10_right']} of {summary['figure10_groupings']} groupings.",
    ]
    return "\n".join([lines[0], "", *lines[1:]])


def _by_model(title: str, table: Mapping[str, Any], corner: str) -> Iterable[str]:
    yield f"### {title}"
    for model, rows in table.items():
        yield f"{model}:\n\n{_grid(rows, corner)}"


def _section(title: str, text: str) -> str:
    return f"### {title}\n\n{text}"


def _grid(rows: Mapping[str, Mapping[str, Pair]], corner: str) -> str:
    """A Markdown table of pairs."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_cell(row[c]) if c in row else "" for c in columns)] for name, row in rows.items()]
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(pair: Pair) -> str:
    theirs, ours = pair["paper"], pair["predicted"]
    text = f"{_number(theirs)} / {_number(ours)}"
    if isinstance(theirs, float | int) and isinstance(ours, float | int):
        return f"{text} ({100 * (ours / theirs - 1):+.0f}%)"
    return text


def _number(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"
