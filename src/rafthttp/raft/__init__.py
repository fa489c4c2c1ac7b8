"""The consensus server. Knows no HTTP; meets the world through `StreamLayer` and the stores."""
