"""The report of a run: one HTML file that needs nothing else, with charts drawn as SVG."""

from pac_core.report.content import Content, DeviceUse, Outcome, PhaseUse
from pac_core.report.page import render, write
from pac_core.spans import Span

__all__ = ["Content", "DeviceUse", "Outcome", "PhaseUse", "Span", "render", "write"]
