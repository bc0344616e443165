"""Files: a source read by slice, a plan, a streaming run, a manifest; coded checkpoints read, verified, exported."""

from ..progress import Progress
from .format.export import ExportResult, export
from .format.inspect import DiffReport, InspectReport, diff, inspect
from .format.manifest import Manifest
from .format.reader import CodedCheckpoint, open_coded
from .format.verify import VerifyReport, verify
from .io.source import Source, open_source
from .plan.estimate import Estimate, estimate
from .plan.plan import Plan, make_plan
from .plan.planned import CodedTensor, KeptTensor
from .plan.recipe import Recipe, load_recipe
from .run.quantize import QuantizeResult, quantize

__all__ = [
    "CodedCheckpoint",
    "CodedTensor",
    "DiffReport",
    "Estimate",
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
    "estimate",
    "export",
    "inspect",
    "load_recipe",
    "make_plan",
    "open_coded",
    "open_source",
    "quantize",
    "verify",
]
