"""What makes tokenizing (data/tokens.py) fast without changing an id."""
