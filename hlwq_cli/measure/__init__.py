"""Measurements of a model: perplexity, divergence from a reference, weight error, speed, tasks; reports and charts."""

from .chart import check_drawable, draw
from .expert_traffic import ExpertTraffic
from .gates import Gates, check_gates
from .report import BenchReport, Measured, Request
from .runner import bench
from .saved import check_savable, save_report
from .speed import Speed
from .windows import ProtocolName

__all__ = [
    "BenchReport",
    "ExpertTraffic",
    "Gates",
    "Measured",
    "ProtocolName",
    "Request",
    "Speed",
    "bench",
    "check_drawable",
    "check_gates",
    "check_savable",
    "draw",
    "save_report",
]
