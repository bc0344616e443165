"""What a step of one new token does between products of weights."""
