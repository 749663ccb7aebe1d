"""From records on disk to a table of tokenized documents: in blocks, over all cores, once, into a cache."""
