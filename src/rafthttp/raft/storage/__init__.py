"""LogStore, StableStore and SnapshotStore: sqlite, files, memory."""
