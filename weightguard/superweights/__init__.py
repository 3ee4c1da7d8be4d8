"""Super weights from weights alone: nominated by their numbers, or published for their model."""
