"""hashicorp/raft's bytes, sans-I/O: msgpack dialect, RPC records, stream framing."""
