"""Thin commands: parse, call one function, print. `python -m scripts` lists them."""
