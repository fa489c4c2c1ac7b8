"""The ready-made key-value service."""
