"""What makes tokenizing (data/tokens.py) fast without changing an id, and what holds it to other programs."""
