"""The seed: an HTTP upgrade as a stream layer, join and leave over the same endpoint.

Meets `rafthttp.raft` only through the stream protocols, the words and the errors.
"""
