"""Files: a source read by slice, a plan, a streaming run, a manifest; coded checkpoints read, verified, exported."""

from ..progress import Progress
from .format import (
    OWN_TEXT_ORIGIN,
    CodedCheckpoint,
    DiffReport,
    ExportResult,
    InspectReport,
    Manifest,
    VerifyReport,
    describe_calibration,
    diff,
    export,
    inspect,
    open_coded,
    verify,
)
from .io import Source, is_repo_id, open_source
from .plan import CodedTensor, Estimate, KeptTensor, Plan, Recipe, check_coded, estimate, load_recipe, make_plan
from .run import Calibration, QuantizeResult, check_calibration, check_origin, check_unquantized, quantize, recorded

__all__ = [
    "OWN_TEXT_ORIGIN",
    "Calibration",
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
    "check_calibration",
    "check_coded",
    "check_origin",
    "check_unquantized",
    "describe_calibration",
    "diff",
    "estimate",
    "export",
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
