-- PUT /kv/keyN of a 64-byte value, over 4,096 keys.
local value = string.rep("x", 64)
local count = 0
function request()
  count = (count + 1) % 4096
  return wrk.format("PUT", "/kv/key" .. count, nil, value)
end
