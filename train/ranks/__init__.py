"""The processes of a run: joining them, and sums over all of them."""
