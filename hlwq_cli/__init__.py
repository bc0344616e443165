"""hlwq: language models in packed Hadamard-Lloyd codes."""

__version__ = "0.1.0"
