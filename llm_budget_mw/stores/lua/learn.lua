-- Adds to histograms of the length of answers and returns them; their twin is outputs.merged.
-- Not to be repeated under an id: one batch counted twice changes no decision.
-- KEYS     one hash per histogram, <prefix>:1:{outputs}:<route>/<model>: buckets to counts. It
--          lives as long after it was last added to as ARGV[2] says.
-- ARGV[1]  most answers: beyond, all counts are halved
-- ARGV[2]  lifetime, ms
-- ARGV[3..] for each key: bucket, count, bucket, count, ...; joined by spaces
-- Reply: for each key the same list as it is now. Read by stores/_commands.py.
local most, lifetime = tonumber(ARGV[1]), ARGV[2]

local function halve(key, fields)
  local kept = {}
  for i = 1, #fields, 2 do
    local count = math.floor(fields[i + 1] / 2)
    if count > 0 then
      call("HSET", key, fields[i], count)
      kept[#kept + 1], kept[#kept + 2] = fields[i], count
    else
      call("HDEL", key, fields[i])
    end
  end
  return kept
end

local replies = {}
for i, key in ipairs(KEYS) do
  local total = 0
  for bucket, count in string.gmatch(ARGV[2 + i], "(%d+) (%d+)") do
    call("HINCRBY", key, bucket, count)
  end
  local fields = call("HGETALL", key)
  for n = 2, #fields, 2 do total = total + fields[n] end
  if total > most then fields = halve(key, fields) end
  if ARGV[2 + i] ~= "" then call("PEXPIRE", key, lifetime) end
  replies[i] = table.concat(fields, " ")
end
return replies
