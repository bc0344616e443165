"""The plan: for each tensor of a source, how it is coded, or why it is kept."""

from .codable import is_conv1d, is_plain_linear, parameter_kinds
from .coverage import check_coded, plan_warnings
from .estimate import Estimate, estimate
from .model_class import build_model
from .plan import Plan, make_plan
from .planned import CodedTensor, KeptTensor, PlannedTensor, StoredTensor, stored_bytes
from .recipe import Recipe, load_recipe
from .resolver import Origin, Resolution, convert, resolve

__all__ = [
    "CodedTensor",
    "Estimate",
    "KeptTensor",
    "Origin",
    "Plan",
    "PlannedTensor",
    "Recipe",
    "Resolution",
    "StoredTensor",
    "build_model",
    "check_coded",
    "convert",
    "estimate",
    "is_conv1d",
    "is_plain_linear",
    "load_recipe",
    "make_plan",
    "parameter_kinds",
    "plan_warnings",
    "resolve",
    "stored_bytes",
]
