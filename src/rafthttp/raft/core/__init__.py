"""Raft's rules, sans-I/O: indexes and terms in, one `Ready` out.

No bytes, no clock, no randomness of its own, no asyncio, no logging (import-linter holds it).
"""
