-- Linearizable POST /v3/kv/range of one key.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"key":"a2V5QUFBQQ=="}'
wrk.path = "/v3/kv/range"
