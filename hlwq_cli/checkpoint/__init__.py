"""Files: a source read by slice, a plan, a streaming run, a manifest; coded checkpoints read, verified, exported."""

from .integrity import VerifyReport, verify
from .jobs import CodedTensor, KeptTensor
from .manifest import Manifest
from .plain import ExportResult, export
from .plan import Plan, make_plan
from .reader import CodedCheckpoint, open_coded
from .recipe import Recipe, load_recipe
from .report import DiffReport, InspectReport, diff, inspect
from .source import Source, open_source
from .stream import Progress, QuantizeResult, quantize

__all__ = [
    "CodedCheckpoint",
    "CodedTensor",
    "DiffReport",
    "ExportResult",
    "InspectReport",
    "KeptTensor",
    "Manifest",
    "Plan",
    "Progress",
    "QuantizeResult",
    "Recipe",
    "Source",
    "VerifyReport",
    "diff",
    "export",
    "inspect",
    "load_recipe",
    "make_plan",
    "open_coded",
    "open_source",
    "quantize",
    "verify",
]
