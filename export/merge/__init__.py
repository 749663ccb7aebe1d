"""An adapter into its base: read, merged shard by shard, checked against the live model, and named file by file."""
