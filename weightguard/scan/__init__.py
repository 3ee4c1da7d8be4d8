"""The one streaming pass: digests, residues and statistics of a block while it is in cache."""
