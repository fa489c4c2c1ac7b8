"""The seed: an HTTP upgrade as a stream layer, join and leave over the same endpoint."""
