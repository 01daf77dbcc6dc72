-- Changes what operators added to the limits of one subject, or forgets what was used.
-- KEYS[1]  its account (layout in ledger.lua)
-- ARGV[1]  given time ms (0: the server's), f64
-- ARGV[2]  `add`, `drop`, `reset` or `show`
-- ARGV[3]  add: the line `kind limit amount until id` without its end; `set` replaces an earlier
--          one of its limit. drop: an id. reset: names of limits, joined by spaces
-- Reply: 1 changed, 0 nothing to change (an id that is known), -1 too many lines; then the lines
-- now in force. Read by stores/_commands.py.
local MOST = 64 -- lines of one account: a bound on the time of an admission
local YEAR_MS = 366 * 86400000
local key, verb, what = KEYS[1], ARGV[2], ARGV[3]
local now = clock(key, unpack_struct("<d", ARGV[1]))
local rare = rarely()
local text = call("HGET", key, "+") or ""

-- Returns the lines for which `keep` is true of kind, limit, until and id.
local function filter(lines, keep)
  return (string.gsub(lines, ENTRY, function(kind, name, _, till, id)
    if not keep(kind, name, till, id) then return "" end
  end))
end

local function add(line)
  local kind, name, _, till, id = string.match(line .. "\n", ENTRY)
  local known, count = false, 0
  filter(text, function(_, _, _, other)
    known, count = known or other == id, count + 1
    return true
  end)
  if known then return 0 end
  if count >= MOST then return -1 end
  if kind == "set" then
    text = line .. "\n" .. filter(text, function(k, n) return k ~= "set" or n ~= name end)
  else
    text = text .. line .. "\n"
  end
  call("HSET", key, "+", text)
  till = tonumber(till)
  rare.prolong(key, (till > 0 and math.max(till - now, 0) or YEAR_MS) + KEEP_MS)
  return 1
end

local function drop(id)
  local kept = filter(text, function(_, _, _, other) return other ~= id end)
  if kept == text then return 0 end
  text = kept
  call("HSET", key, "+", text)
  return 1
end

-- Lets what is held stand: calls are under way, and settle in time.
local function reset(names)
  if not call("HGET", key, "@") then return 0 end
  local account = rare.open(key)
  for name in string.gmatch(names, "%S+") do
    local limit = rare.limit_of(key, account, name)
    limit[2], limit[5] = 0, 0
  end
  rare.close(key, account)
  return 1
end

-- Ended lines stay a day, so that a repeated id is known for that long.
text = filter(text, function(_, _, till) return in_force(till, now - KEEP_MS) end)
local changed = 0
if verb == "add" then changed = add(what) end
if verb == "drop" then changed = drop(what) end
if verb == "reset" then changed = reset(what) end
return { changed, (filter(text, function(_, _, till) return in_force(till, now) end)) }
