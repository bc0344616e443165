"""What a coded model is worth: perplexity, divergence from a reference, weight error, speed, charts."""
