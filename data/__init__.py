"""Text in, tensors out: records -> render -> tokens -> pack -> dataset. Knows no config object and no model."""
