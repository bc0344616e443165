"""The plan: for each tensor of a source, how it is coded, or why it is kept."""

from .codable import is_conv1d, is_plain_linear
from .coverage import check_coded, plan_warnings
from .estimate import Estimate, estimate
from .plan import Plan, make_plan
from .planned import CodedTensor, KeptTensor, PlannedTensor, StoredTensor, stored_bytes
from .recipe import Recipe, load_recipe

__all__ = [
    "CodedTensor",
    "Estimate",
    "KeptTensor",
    "Plan",
    "PlannedTensor",
    "Recipe",
    "StoredTensor",
    "check_coded",
    "estimate",
    "is_conv1d",
    "is_plain_linear",
    "load_recipe",
    "make_plan",
    "plan_warnings",
    "stored_bytes",
]
