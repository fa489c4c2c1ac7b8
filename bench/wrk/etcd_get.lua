-- Linearizable POST /v3/kv/range of a key that etcd_put.lua puts at once (wrk takes the first one for itself).
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"key":"a2V5ACAA"}'
wrk.path = "/v3/kv/range"
