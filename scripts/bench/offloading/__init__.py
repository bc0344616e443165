"""The parts of scripts/bench/offload.py."""
