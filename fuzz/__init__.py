"""Long fuzzing runs of `rafthttp.testing.fuzzing`, with atheris."""
