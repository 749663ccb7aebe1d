"""The model card: what was measured on a run, in the shape that readers of such models know."""
