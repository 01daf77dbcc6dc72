-- Admits one plan: holds the first offer that fits every limit, or writes nothing.
-- KEYS     one account per subject (layout in ledger.lua), then perhaps the switchboard (switch.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  per subject: count of limits, lifetime ms; per limit of it: resource (1 requests,
--          2 concurrency, 3 tokens, 4 cost; negative: it counts and never refuses), window (0
--          none, 1 fixed, 2 sliding, 3 calendar), amount, then length ms, 0 (fixed, sliding) or start ms, end ms (calendar), most
--          that is carried over from the window before; all f64
-- ARGV[3]  given time ms (0: the server's), lease ms, charge on expiry (0 or 1; 2 more if
--          this admission was sent before, and the first copy may arrive yet), count of
--          subjects; per offer: most output, least output, ceiling, fixed tokens, tokens per
--          output token, fixed nano-dollars, nano-dollars per output token, subjects it is not
--          charged to (a bit each); all f64
-- ARGV[4..] names of the limits of each subject, joined by spaces; then fields of the
--          switchboard: one for the model of each offer, then those that stop every call
-- Reply: time ms, offer (from 1; 0 refused, -1 a calendar window is stale, -2 stopped), output
-- (of a stopped call: the number of the field that stops it), offers whose model is stopped (a
-- bit each), count of limits; the five numbers of each limit as they are now; and where any has
-- one, what each limit has beside its amount; all f64. Read by stores/_commands.py.
-- Expired reservations of the subjects are collected first, some at a time, also on refusal.
local id, spec, dynamic = ARGV[1], ARGV[2], ARGV[3]
local given, lease, charge_on_expiry, subjects, offers_at = unpack_struct("<dddd", dynamic)
local now = clock(KEYS[1], given)

-- Room for some limits up front: growing a table costs more than all the arithmetic.
local resource, amount, used = { 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 0, 0, 0 }
local numbers, limits, counts, lifetimes = { 0 }, { 0 }, { 0 }, { 0 }
local bits, more = { 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 0, 0, 0 }
local total, spec_at, replayed, additions, any_more = 0, 1, nil, {}, false

for s = 1, subjects do
  local key, names = KEYS[s], ARGV[3 + s]
  local count, lifetime, at = unpack_struct("<dd", spec, spec_at)
  counts[s], lifetimes[s], spec_at = count, math.max(lifetime, lease), at + 48 * count
  limits[s] = { unpack_struct(doubles(6 * count), spec, at) }
  local stored = call("HMGET", key, "@", id, "+")
  local value, record = stored[1], stored[2]
  additions[s] = stored[3]
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

for s = 1, subjects do
  local state, limit, count = numbers[s], limits[s], counts[s]
  local first, ended = total, additions[s] and {}
  for n = 1, count do
    local p, b = 6 * n - 6, 5 * n + 2
    local kind, from, till = limit[p + 2], limit[p + 4], limit[p + 5]
    local start = 0
    if kind == 3 then
      if now < from or now >= till then return pack("<ddddd", now, -1, 0, 0, 0) end
      start = from
    elseif kind > 0 then
      start, till = now - now % from, now - now % from + from
    end
    if state[b + 1] < start then
      state[b + 4], state[b + 5] = state[b + 1], state[b + 2] + state[b + 3]
      state[b + 1], state[b + 2], state[b + 3] = start, 0, 0
      if ended then ended[n] = state[b + 5] end
    end
    local taken = state[b + 2] + state[b + 3]
    if kind == 2 and state[b + 4] == state[b + 1] - from then
      local left = math.min(from, from - (now - state[b + 1]))
      taken = taken + math.ceil(state[b + 5] * left / from)
    end
    total = total + 1
    resource[total], amount[total], used[total], bits[total], more[total] = math.abs(limit[p + 1]), limit[p + 3], taken, 2 ^ (s - 1), 0
    if limit[p + 6] > 0 and state[b + 4] > 0 then
      -- A window before the last one was not used at all; units of a calendar vary by less than half.
      local before = state[b + 4] >= start - 1.5 * (till - start) and state[b + 5] or 0
      more[total] = math.max(0, math.min(limit[p + 6], amount[total] - before))
    end
  end
  if ended then
    local added, text = rarely().add_up(additions[s], ARGV[3 + s], limit, ended, now)
    for n = 1, count do more[first + n] = more[first + n] + added[n] end
    additions[s] = text ~= additions[s] and text
  end
  for n = 1, count do
    local i = first + n
    if more[i] ~= 0 then amount[i], any_more = amount[i] + more[i], true end
    if limit[6 * n - 5] < 0 then amount[i] = NEVER end
  end
end

local stopped, stop = 0, 0
if KEYS[subjects + 1] then
  local switches = call("HMGET", KEYS[subjects + 1], unpack(ARGV, 4 + subjects))
  local offers = (#dynamic - offers_at + 1) / 64
  for i = 1, #switches do
    if switches[i] and in_force(string.match(switches[i], "^%d+"), now) then
      if i <= offers then
        stopped = stopped + 2 ^ (i - 1)
      elseif stop == 0 then
        stop = i
      end
    end
  end
end

local offer, output, number = 0, 0, 0
local fixed, each, spares = { 1, 1, 0, 0 }, { 0, 0, 0, 0 }, 0
if replayed then
  -- The reply to this very admission was lost: answer again, charge once. An abandoned one
  -- that was settled meanwhile must not come back to life.
  local state, _, _, granted, tokens = unpack_struct("<Bdddd", replayed)
  if state == HELD then offer, output = granted, tokens end
elseif stop > 0 then
  offer, output = -2, stop
else
  while offers_at <= #dynamic do
    local most, least, ceiling
    number = number + 1
    most, least, ceiling, fixed[3], each[3], fixed[4], each[4], spares, offers_at = unpack_struct("<dddddddd", dynamic, offers_at)
    if has_bit(stopped, 2 ^ (number - 1)) then most = -1 end
    for i = 1, total do
      local r, usable = resource[i], amount[i]
      local first, per_token = fixed[r], each[r]
      -- What costs nothing passes, also when all is used up.
      if (first > 0 or per_token > 0) and not has_bit(spares, bits[i]) then
        if r > 2 then usable = math.floor(usable * ceiling) end
        local room = usable - used[i] - first
        if room < 0 then
          most = -1
          break
        end
        if per_token > 0 then most = math.min(most, math.floor(room / per_token)) end
      end
    end
    if most >= least then
      offer, output = number, most
      break
    end
  end
end

if charge_on_expiry >= 2 and offer <= 0 and not replayed then
  -- Refused: its first copy must not find room later, when nobody waits for it any more.
  for s = 1, subjects do rarely().remember(KEYS[s], id, now, math.max(lifetimes[s], KEEP_MS)) end
end

local replies = { pack("<ddddd", now, offer, output, stopped, total), "" }
local holding, done = offer > 0 and not replayed, 0
for s = 1, subjects do
  local state, count, key, names = numbers[s], counts[s], KEYS[s], ARGV[3 + s]
  local expires, lifetime, short = now + lease, lifetimes[s], false
  local amounts = { 0, 0, 0, 0 }
  if holding then
    for i = 1, count do
      local r, charge = resource[done + i], 0
      if not has_bit(spares, bits[done + i]) then charge = fixed[r] + each[r] * output end
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
    if additions[s] then call("HSET", key, "+", additions[s]) end
    if short then rarely().prolong(key, 1.25 * lifetime) end
  end
  done = done + count
end
if any_more then replies[#replies + 1] = pack(doubles(total), unpack(more, 1, total)) end
return table.concat(replies)
