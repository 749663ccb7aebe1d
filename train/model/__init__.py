"""The base with scaled rope, the adapter on it, attention within documents, and which weights these are."""
