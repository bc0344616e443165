"""A coded checkpoint as a live model."""
