"""Conversations and the text that answers them."""
