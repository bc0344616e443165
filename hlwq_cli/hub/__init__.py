"""A result and the Hub: its card, and its way there."""

from .card import CardResult, remake_card
from .push import PushResult, push

__all__ = ["CardResult", "PushResult", "push", "remake_card"]
