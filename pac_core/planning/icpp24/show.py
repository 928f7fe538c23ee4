"""The reproduction as text: Markdown tables, which read well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pac_core.planning.icpp24.calibrate import CELLS
from pac_core.planning.icpp24.tables import Pair, Reproduction


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
