"""The fast path and the saved configuration of every family of decoders."""
