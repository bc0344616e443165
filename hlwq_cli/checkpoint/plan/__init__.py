"""The plan: for each tensor of a source, how it is coded, or why it is kept."""
