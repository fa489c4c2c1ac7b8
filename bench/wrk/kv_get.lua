-- Linearizable GET of a key that kv_put.lua puts at once (wrk takes the first one for itself).
wrk.path = "/kv/key2"
