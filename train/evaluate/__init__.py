"""How good the adapter is while it trains, without touching the training."""
