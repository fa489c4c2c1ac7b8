"""Commands that are applied once (docs/reference/sessions.md): both halves.

`envelope` is the bytes, `table` what replicas remember, `fsm` the wrapper around a state machine,
`client` who numbers the requests. Stands on `raft`; knows no HTTP.
"""
