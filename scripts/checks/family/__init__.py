"""What `families.py` is made of: tiny models of the classes of transformers, their steps, and the page."""
