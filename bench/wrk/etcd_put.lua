-- POST /v3/kv/put of a 64-byte value, over 1,000 keys; etcd's JSON API wants base64.
local value = "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eA=="
local digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local count = 0
wrk.headers["Content-Type"] = "application/json"
function request()
  count = (count + 1) % 4096
  local high = math.floor(count / 64) + 1
  local low = count % 64 + 1
  -- "a2V5" is "key"; two more base64 digits and padding name one of 4,096 keys of five bytes
  local key = "a2V5" .. digits:sub(high, high) .. digits:sub(low, low) .. "AA"
  return wrk.format("POST", "/v3/kv/put", nil,
    '{"key":"' .. key .. '","value":"' .. value .. '"}')
end
