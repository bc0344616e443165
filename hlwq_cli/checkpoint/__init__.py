"""Files: a source read by slice, a plan, a streaming run, a manifest; coded checkpoints read, verified, exported."""

from ..progress import Progress
from .format.export import ExportResult, export
from .format.inspect import DiffReport, InspectReport, diff, inspect
from .format.manifest import Manifest
from .format.reader import CodedCheckpoint, open_coded
from .format.verify import VerifyReport, verify
from .io.hub_repo import is_repo_id
from .io.source import Source, open_source
from .plan.coverage import check_coded
from .plan.estimate import Estimate, estimate
from .plan.plan import Plan, make_plan
from .plan.planned import CodedTensor, KeptTensor
from .plan.recipe import Recipe, load_recipe
from .run.devices import find_devices
from .run.quantize import QuantizeResult, check_origin, check_unquantized, quantize
from .run.trace import recorded

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
    "check_coded",
    "check_origin",
    "check_unquantized",
    "diff",
    "estimate",
    "export",
    "find_devices",
    "inspect",
    "is_repo_id",
    "load_recipe",
    "make_plan",
    "open_coded",
    "open_source",
    "quantize",
    "recorded",
    "verify",
]
