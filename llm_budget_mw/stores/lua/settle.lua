-- Replaces a reservation by what was used, in the windows it was admitted in; always succeeds.
-- KEYS     the accounts of the admission (layout in ledger.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  admission time by the store's clock, ms (0: the store never answered); given time
--          ms (0: the server's); per subject: count of limits, lifetime ms; per limit of it:
--          start ms of the window it was admitted in (0 for a slot), used (0 for a slot); all f64
-- ARGV[3..] names of the limits of each subject, joined by spaces
-- Reply, one digit for each subject: 1 settled, 2 nothing to do (done before), 3 settled after
-- expiry, 4 charged without a reservation. Read by stores/_commands.py.
local id, dynamic = ARGV[1], ARGV[2]
local admitted_at, given, at = unpack_struct("<dd", dynamic)

-- Remembers the id against a repetition, and against an admission that arrives after this.
local function remember(key, now, lifetime)
  call("HSET", key, id, pack("<BddddBB", SETTLED, now + KEEP_MS, 0, 0, 0, 0, 0))
  rarely().prolong(key, lifetime)
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
    i = i + 2
  end
  if fresh then head[1], head[2] = now, now + lifetime end
  head[3] = math.max(head[3], now)
  head[4], head[6] = math.min(head[4], now + KEEP_MS), math.min(head[6], now + KEEP_MS)
  rare.close(key, account)
end

-- Settles a reservation whose limits are not those of the account any more.
local function settle_by_name(key, names, record, from, postings, admitted, held)
  local rare, i = rarely(), 0
  local account = rare.open(key)
  for name in string.gmatch(names, "%S+") do
    local amount = unpack_struct("<d", record, from + 8 * i)
    adjust(rare.limit_of(key, account, name), 0, admitted, held * amount, (1 - held) * amount, postings[2 * i + 2])
    i = i + 1
  end
  rare.close(key, account)
end

-- Returns what became of one subject; see the reply.
local function settle(key, names, count, postings, lifetime)
  local stored = call("HMGET", key, "@", id)
  local value, record = stored[1], stored[2]
  if not record then
    -- Gone because settled, unless the store never heard of it or has lost what it knew.
    if value and unpack_struct("<d", value) <= admitted_at then return 2 end
    local now = clock(key, given)
    charge(key, names, postings, now, lifetime)
    remember(key, now, lifetime)
    return 4
  end
  local state, _, admitted, _, _, _, _, from = unpack_struct("<BddddBB", record)
  if state == SETTLED then return 2 end
  local held = state == HELD and 1 or 0
  if not value or sub(value, 57 + 40 * count) ~= names then
    settle_by_name(key, names, record, from, postings, admitted, held)
  else
    local amounts = { unpack_struct(doubles(count), record, from) }
    local numbers = { unpack_struct(doubles(7 + 5 * count), value) }
    for i = 1, count do
      adjust(numbers, 2 + 5 * i, admitted, held * amounts[i], (1 - held) * amounts[i], postings[2 * i])
    end
    call("HSET", key, "@", pack(doubles(7 + 5 * count), unpack(numbers, 1, 7 + 5 * count)) .. names)
  end
  -- Without an admission to tell when it was held, its absence would look like a loss next time.
  if admitted_at > 0 then
    call("HDEL", key, id)
  else
    remember(key, clock(key, given), lifetime)
  end
  return state == HELD and 1 or 3
end

local outcome = {}
for s = 1, #KEYS do
  local count, lifetime
  count, lifetime, at = unpack_struct("<dd", dynamic, at)
  local postings = { unpack_struct(doubles(2 * count), dynamic, at) }
  outcome[s] = settle(KEYS[s], ARGV[2 + s], count, postings, math.max(lifetime, KEEP_MS))
  at = at + 16 * count
end
return table.concat(outcome)
