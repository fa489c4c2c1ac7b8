"""Raft over the HTTP port your application already serves."""
