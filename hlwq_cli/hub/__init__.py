"""Checkpoints on the Hub: the model card, and the upload."""

from .card import CardResult, remake_card
from .push import PushResult, push

__all__ = ["CardResult", "PushResult", "push", "remake_card"]
