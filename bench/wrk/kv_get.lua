-- Linearizable GET of one key.
wrk.path = "/kv/key1"
