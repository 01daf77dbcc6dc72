-- Admits one plan: holds the first offer that fits every limit, or writes nothing.
-- KEYS     one account per subject (layout in ledger.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  per subject: count of limits, lifetime ms; per limit of it: resource (1 requests,
--          2 concurrency, 3 tokens, 4 cost), window (0 none, 1 fixed, 2 sliding, 3 calendar),
--          amount, then length ms, 0 (fixed, sliding) or start ms, end ms (calendar); all f64
-- ARGV[3]  given time ms (0: the server's), lease ms, charge on expiry (0 or 1); per offer:
--          most output, least output, ceiling, fixed tokens, tokens per output token, fixed
--          nano-dollars, nano-dollars per output token; all f64
-- ARGV[4..] names of the limits of each subject, joined by spaces
-- Reply: time ms, offer (from 1; 0 refused, -1 a calendar window is stale), output, then the
-- five numbers of each limit as they are now, all f64. Read by stores/_commands.py.
-- Expired reservations of the subjects are collected first, some at a time, also on refusal.
local id, spec, dynamic = ARGV[1], ARGV[2], ARGV[3]
local given, lease, charge_on_expiry, offers_at = unpack_struct("<ddd", dynamic)
local now = clock(KEYS[1], given)

-- Room for some limits up front: growing a table costs more than all the arithmetic.
local resource, amount, used = { 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 0, 0, 0 }
local numbers, limits, counts, lifetimes = { 0 }, { 0 }, { 0 }, { 0 }
local total, spec_at, replayed = 0, 1, nil

for s = 1, #KEYS do
  local key, names = KEYS[s], ARGV[3 + s]
  local count, lifetime, at = unpack_struct("<dd", spec, spec_at)
  counts[s], lifetimes[s], spec_at = count, math.max(lifetime, lease), at + 40 * count
  limits[s] = { unpack_struct(doubles(5 * count), spec, at) }
  local stored = call("HMGET", key, "@", id)
  local value, record = stored[1], stored[2]
  if value then
    if now >= unpack_struct("<d", value, 25) then
      value = rarely().collect(key, now)
      record = call("HGET", key, id)
    end
    if sub(value, 57 + 40 * count) ~= names then value = rarely().reorder(key, names) end
    numbers[s] = { unpack_struct(doubles(7 + 5 * count), value) }
    -- A subject's time never runs backwards, or a window that is over would open again.
    now = math.max(now, numbers[s][3])
  else
    numbers[s] = { unpack_struct(doubles(7 + 5 * count), string.rep("\0", 56 + 40 * count)) }
    numbers[s][1], numbers[s][4], numbers[s][6], numbers[s][7] = now, NEVER, NEVER, count
  end
  replayed = replayed or record
end

for s = 1, #KEYS do
  local state, limit = numbers[s], limits[s]
  for p = 0, 5 * counts[s] - 5, 5 do
    local kind, from = limit[p + 2], limit[p + 4]
    local start, b = 0, p + 7
    if kind == 3 then
      if now < from or now >= limit[p + 5] then return pack("<ddd", now, -1, 0) end
      start = from
    elseif kind > 0 then
      start = now - now % from
    end
    if state[b + 1] < start then
      state[b + 4], state[b + 5] = state[b + 1], state[b + 2] + state[b + 3]
      state[b + 1], state[b + 2], state[b + 3] = start, 0, 0
    end
    local taken = state[b + 2] + state[b + 3]
    if kind == 2 and state[b + 4] == state[b + 1] - from then
      local left = math.min(from, from - (now - state[b + 1]))
      taken = taken + math.ceil(state[b + 5] * left / from)
    end
    total = total + 1
    resource[total], amount[total], used[total] = limit[p + 1], limit[p + 3], taken
  end
end

local offer, output, number = 0, 0, 0
local fixed, each = { 1, 1, 0, 0 }, { 0, 0, 0, 0 }
if replayed then
  -- The reply to this very admission was lost: answer again, charge once. An abandoned one
  -- that was settled meanwhile must not come back to life.
  local state, _, _, granted, tokens = unpack_struct("<Bdddd", replayed)
  if state == HELD then offer, output = granted, tokens end
else
  while offers_at <= #dynamic do
    local most, least, ceiling
    number = number + 1
    most, least, ceiling, fixed[3], each[3], fixed[4], each[4], offers_at = unpack_struct("<ddddddd", dynamic, offers_at)
    for i = 1, total do
      local r, usable = resource[i], amount[i]
      local first, more = fixed[r], each[r]
      if first > 0 or more > 0 then -- what costs nothing passes, also when all is used up
        if r > 2 then usable = math.floor(usable * ceiling) end
        local room = usable - used[i] - first
        if room < 0 then
          most = -1
          break
        end
        if more > 0 then most = math.min(most, math.floor(room / more)) end
      end
    end
    if most >= least then
      offer, output = number, most
      break
    end
  end
end

local replies = { pack("<ddd", now, offer, output), "" }
local holding, done = offer > 0 and not replayed, 0
for s = 1, #KEYS do
  local state, count, key, names = numbers[s], counts[s], KEYS[s], ARGV[3 + s]
  local expires, lifetime, short = now + lease, lifetimes[s], false
  local amounts = { 0, 0, 0, 0 }
  if holding then
    for i = 1, count do
      local r = resource[done + i]
      local charge = fixed[r] + each[r] * output
      amounts[i], state[5 + 5 * i] = charge, state[5 + 5 * i] + charge
    end
    short = state[2] < now + lifetime
    if short then state[2] = now + 1.25 * lifetime end
    state[3], state[4], state[6] = now, math.min(state[4], expires), math.min(state[6], expires)
  end
  local value = pack(doubles(7 + 5 * count), unpack(state, 1, 7 + 5 * count))
  replies[s + 1] = sub(value, 57)
  if holding then
    local head = pack("<BddddBB", HELD, expires, now, offer, output, charge_on_expiry, count)
    local record = head .. pack(doubles(count), unpack(amounts, 1, count)) .. names
    call("HSET", key, "@", value .. names, id, record)
    if short then call("PEXPIRE", key, string.format("%.0f", 1.25 * lifetime)) end
  end
  done = done + count
end
return table.concat(replies)
