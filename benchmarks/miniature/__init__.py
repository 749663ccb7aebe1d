"""The card's table in miniature: a base made from nothing, extended by every method, measured beside its controls."""

import train  # noqa: F401  (first: it keeps idle threads from spinning, which must be said before torch starts them)
