"""A checkpoint's own SentencePiece model against the fast tokenizer made of it: `compare` asks, `exact` mends."""
