-- Replaces a reservation by what was used, in the windows it was admitted in; always succeeds.
-- KEYS     the accounts of the admission (layout in ledger.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  admission time by the store's clock, ms (0: the store never answered); given time
--          ms (0: the server's); per subject: count of limits, lifetime ms; per limit of it:
--          start ms of the window it was admitted in (0 for a slot), used (0 for a slot), amount
--          of which thresholds are parts (0: none are); all f64
-- ARGV[3]  how much unusual spending is: factor, least, number of the limit of each subject that
--          tells (0: none); or empty. ARGV[4]: thresholds in rising order; all f64
-- ARGV[5..] names of the limits of each subject, joined by spaces
-- Reply, one digit for each subject: 1 settled, 2 nothing to do (done before), 3 settled after
-- expiry, 4 charged without a reservation; then after a blank each what is to be told, by number of
-- subject and limit: `subject.limit.t.threshold.used` or `subject.limit.a.spent.usual`. Read by
-- stores/_commands.py.
local id, dynamic, unusual = ARGV[1], ARGV[2], ARGV[3]
local admitted_at, given, at = unpack_struct("<dd", dynamic)
local thresholds = { unpack_struct(doubles(#ARGV[4] / 8), ARGV[4]) }
thresholds[#thresholds] = nil -- where reading ended
local MINUTES_MS, KNOWN_DAYS = 600000, 3
local told = {}

local function tell(s, i, kind, number, amount)
  told[#told + 1] = string.format(" %d.%d.%s.%.0f.%.0f", s, i, kind, number, amount)
end

-- Tells each threshold once in a window: field !<name> has the window and how many were told.
-- `find` returns start and committed of a limit, by number and name.
local function watch(key, s, names, postings, find)
  local i = 0
  for name in string.gmatch(names, "%S+") do
    i = i + 1
    local amount, start, used = postings[3 * i], find(i, name)
    local level = 0
    while amount > 0 and thresholds[level + 1] and used >= thresholds[level + 1] * amount do
      level = level + 1
    end
    if level > 0 then
      local window, known = 0, 0
      local mark = call("HGET", key, "!" .. name)
      if mark then window, known = unpack_struct("<dd", mark) end
      if window ~= start then known = 0 end
      for n = known + 1, level do tell(s, i, "t", n, used) end
      if level > known then call("HSET", key, "!" .. name, pack("<dd", start, level)) end
    end
  end
end

-- Tells once a day if as much was spent within some minutes as usually in a day like it. Field ~
-- has the day, its sum, the minutes, their sum, the day last told of, and a mean for each day of
-- the week (-1: none yet). The Python twin is stores/_baseline.py.
local function compare(key, s, i, spent, now)
  local factor, least = unpack_struct("<dd", unusual)
  local day, minutes = math.floor(now / KEEP_MS), math.floor(now / MINUTES_MS)
  local kept = call("HGET", key, "~")
  local b = kept and { unpack_struct(doubles(12), kept) } or { day, 0, minutes, 0, 0, -1, -1, -1, -1, -1, -1, -1 }
  if b[1] < day then
    local n = 6 + b[1] % 7
    b[n] = b[n] < 0 and b[2] or math.floor(0.7 * b[n] + 0.3 * b[2])
    b[1], b[2] = day, 0
  end
  if b[3] < minutes then b[3], b[4] = minutes, 0 end
  b[2], b[4] = b[2] + spent, b[4] + spent
  local sum, days = 0, 0
  for n = 6, 12 do
    if b[n] >= 0 then sum, days = sum + b[n], days + 1 end
  end
  local usual = b[6 + day % 7]
  if usual < 0 and days > 0 then usual = math.floor(sum / days) end
  if days >= KNOWN_DAYS and b[5] ~= day and b[4] >= least and b[4] > usual * factor then
    b[5] = day
    tell(s, i, "a", b[4], usual)
  end
  call("HSET", key, "~", pack(doubles(12), unpack(b, 1, 12)))
end

-- Charges a call of which the account knows nothing.
local function charge(key, names, postings, now, lifetime)
  local rare, i = rarely(), 0
  local account = rare.open(key)
  local head, fresh = account.head, #account.order == 0
  for name in string.gmatch(names, "%S+") do
    local start, actual = postings[i + 1], postings[i + 2]
    local limit = rare.limit_of(key, account, name)
    -- Without an admission the start comes from a client's clock: it may not turn a window over.
    if start > now then start = limit[1] > 0 and limit[1] or now end
    if limit[1] < start then
      limit[1], limit[2], limit[3], limit[4], limit[5] = start, 0, 0, limit[1], limit[2] + limit[3]
    end
    if limit[1] == start then
      limit[2] = limit[2] + actual
    elseif limit[4] == start then
      limit[5] = limit[5] + actual
    end
    if fresh then account.order[#account.order + 1] = name end
    i = i + 3
  end
  if fresh then head[1], head[2] = now, now + lifetime end
  head[3] = math.max(head[3], now)
  head[4], head[6] = math.min(head[4], now + KEEP_MS), math.min(head[6], now + KEEP_MS)
  rare.close(key, account)
end

local function observe(key, s, names, postings, find)
  if #thresholds > 0 then watch(key, s, names, postings, find) end
  local i = unusual ~= "" and unpack_struct("<d", unusual, 9 + 8 * s) or 0
  if i > 0 then compare(key, s, i, postings[3 * i - 1], clock(key, given)) end
end

-- Settles a reservation whose limits are not those of the account any more.
local function settle_by_name(key, s, names, record, from, postings, admitted, held)
  local rare, i = rarely(), 0
  local account = rare.open(key)
  for name in string.gmatch(names, "%S+") do
    local amount = unpack_struct("<d", record, from + 8 * i)
    adjust(rare.limit_of(key, account, name), 0, admitted, held * amount, (1 - held) * amount, postings[3 * i + 2])
    i = i + 1
  end
  observe(key, s, names, postings, function(_, name)
    local limit = rare.limit_of(key, account, name)
    return limit[1], limit[2]
  end)
  rare.close(key, account)
end

-- Returns what became of one subject; see the reply.
local function settle(key, s, names, count, postings, lifetime)
  local stored = call("HMGET", key, "@", id)
  local value, record = stored[1], stored[2]
  if not record then
    -- Gone because settled, unless the store never heard of it or has lost what it knew.
    if value and unpack_struct("<d", value) <= admitted_at then return 2 end
    local now = clock(key, given)
    charge(key, names, postings, now, lifetime)
    rarely().remember(key, id, now, lifetime)
    return 4
  end
  local state, _, admitted, _, _, flags, _, from = unpack_struct("<BddddBB", record)
  if state == SETTLED then return 2 end
  local held = state == HELD and 1 or 0
  if not value or sub(value, 57 + 40 * count) ~= names then
    settle_by_name(key, s, names, record, from, postings, admitted, held)
  else
    local amounts = { unpack_struct(doubles(count), record, from) }
    local numbers = { unpack_struct(doubles(7 + 5 * count), value) }
    for i = 1, count do
      adjust(numbers, 2 + 5 * i, admitted, held * amounts[i], (1 - held) * amounts[i], postings[3 * i - 1])
    end
    call("HSET", key, "@", pack(doubles(7 + 5 * count), unpack(numbers, 1, 7 + 5 * count)) .. names)
    observe(key, s, names, postings, function(i) return numbers[5 * i + 3], numbers[5 * i + 4] end)
  end
  -- Without an admission to tell when it was held, its absence would look like a loss next time.
  -- And one that was sent twice may arrive once more.
  if admitted_at > 0 and flags < 2 then
    call("HDEL", key, id)
  else
    rarely().remember(key, id, clock(key, given), lifetime)
  end
  return state == HELD and 1 or 3
end

local outcome = {}
for s = 1, #KEYS do
  local count, lifetime
  count, lifetime, at = unpack_struct("<dd", dynamic, at)
  local postings = { unpack_struct(doubles(3 * count), dynamic, at) }
  outcome[s] = settle(KEYS[s], s, ARGV[4 + s], count, postings, math.max(lifetime, KEEP_MS))
  at = at + 24 * count
end
return table.concat(outcome) .. table.concat(told)
