"""`python -m rafthttp` is the command `rafthttp`."""

from rafthttp.cli import main

main()
