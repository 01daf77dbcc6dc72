-- What every script shares: the layout of a subject's account and what expiry does to it.
-- Loaded in front of each operation; the Python twin is stores/_ledger.py.
--
-- One hash per subject, <prefix>:1:{<partition>}:<subject>. Numbers are doubles that hold
-- integers (exact to 2^53), packed little-endian: a third of the time of text. Fields:
--   @        born, lives_until, seen (latest admission), due (next collection), cursor and
--            earliest (of a collection under way), count; then for each of `count` limits
--            start, committed, held, previous_start, previous; then their names. A window's
--            start is the counter's own (0: a slot), so nothing is ever reset.
--   -<name>  the five numbers of a limit that the last admission did not have
--   +        what operators added, a line each: kind limit amount until id (amend.lua)
--   !<name>  the window of a limit and how many thresholds were told in it (settle.lua)
--   ~        what is usually spent (settle.lua)
--   #<id>    a reservation: state u8, expires, admitted, offer, output, charge_on_expiry u8,
--            count u8, an amount for each limit, names. state 1 is held; 2 is expired, the
--            amounts are what was charged; 3 is settled without ever having been held.
-- The hash lives 1.25 times as long as its longest window or lease needs, counted from its last
-- admission; prolonging it only when that runs short saves a command on every request.
local call, pack, unpack_struct, sub = redis.call, struct.pack, struct.unpack, string.sub
local HELD, EXPIRED, SETTLED = 1, 2, 3
local KEEP_MS = 86400000 -- how long a late settlement still finds what expiry charged
local PAGE = 100 -- fields looked at by one collection: a bound on its time
local NEVER = math.huge
local ENTRY = "(%S+) (%S+) (%S+) (%S+) (%S+)\n" -- a line of what operators added

-- Returns the server's clock; a given time counts only under the prefix of the tests.
local function clock(key, given)
  if given > 0 and sub(key, 1, 10) == "llmb-test:" then return given end
  local time = call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether something that ends at a time, as text, still holds; 0 never ends.
local function in_force(till, now)
  till = tonumber(till) or 0
  return till == 0 or now < till
end

-- Whether a sum of powers of two has this one. Most sums are 0.
local function has_bit(bits, one)
  return bits > 0 and math.floor(bits / one) % 2 == 1
end

local function doubles(count)
  return "<" .. string.rep("d", count)
end

-- Lets go of `held` in the window of the admission and turns `charged` there into `actual`.
-- `at` is the index before the counter's five numbers in `numbers`.
local function adjust(numbers, at, admitted, held, charged, actual)
  if numbers[at + 1] <= admitted then
    numbers[at + 2] = numbers[at + 2] + actual - charged
    numbers[at + 3] = numbers[at + 3] - held
  elseif numbers[at + 4] <= admitted then
    numbers[at + 5] = numbers[at + 5] + actual - charged - held
  end
end

-- The rest happens rarely and takes an account apart by name. Behind one function, because
-- making all of them in every call costs as much as a command.
local function rarely()
  -- Keeps a key alive for some time at least.
  local function prolong(key, duration)
    if call("PTTL", key) < duration then call("PEXPIRE", key, string.format("%.0f", duration)) end
  end

  -- Remembers an id against a repetition, and against an admission that arrives after this.
  local function remember(key, id, now, lifetime)
    call("HSET", key, id, pack("<BddddBB", SETTLED, now + KEEP_MS, 0, 0, 0, 0, 0))
    prolong(key, lifetime)
  end

  local function open(key)
    local account = { head = { 0, 0, 0, NEVER, 0, NEVER }, order = {}, limits = {} }
    local value = call("HGET", key, "@")
    if not value then return account end
    account.head = { unpack_struct("<dddddd", value) }
    local count = unpack_struct("<d", value, 49)
    for name in string.gmatch(sub(value, 57 + 40 * count), "%S+") do
      account.limits[name] = { unpack_struct("<ddddd", value, 57 + 40 * #account.order) }
      account.order[#account.order + 1] = name
    end
    return account
  end

  local function limit_of(key, account, name)
    local limit = account.limits[name]
    if not limit then
      local parked = call("HGET", key, "-" .. name)
      limit = parked and { unpack_struct("<ddddd", parked) } or { 0, 0, 0, 0, 0 }
      account.limits[name] = limit
    end
    return limit
  end

  -- Writes an account back; limits that are not in its order are parked.
  local function close(key, account)
    local parts, rest = { pack("<dddddd", unpack(account.head)), pack("<d", #account.order) }, account.limits
    for _, name in ipairs(account.order) do
      parts[#parts + 1] = pack("<ddddd", unpack(limit_of(key, account, name)))
      rest[name] = nil
    end
    for name, limit in pairs(rest) do
      call("HSET", key, "-" .. name, pack("<ddddd", unpack(limit)))
    end
    local value = table.concat(parts) .. table.concat(account.order, " ")
    call("HSET", key, "@", value)
    return value
  end

  -- Gives an account the limits of the present admission, in its order; returns the new value.
  local function reorder(key, names)
    local account = open(key)
    account.order = {}
    for name in string.gmatch(names, "%S+") do
      account.order[#account.order + 1] = name
      limit_of(key, account, name)
      call("HDEL", key, "-" .. name)
    end
    return close(key, account)
  end

  -- Ends a hold nobody settled. What remains is a mark with the amounts charged, so that a late
  -- settlement corrects them instead of adding to them; a mark is dropped when it expires.
  local function expire(key, account, id, record, now)
    local state, _, admitted, offer, output, charge, count, at = unpack_struct("<BddddBB", record)
    if state ~= HELD then
      call("HDEL", key, id)
      return NEVER
    end
    local names, charged = sub(record, at + 8 * count), {}
    for name in string.gmatch(names, "%S+") do
      local limit, amount = limit_of(key, account, name), unpack_struct("<d", record, at + 8 * #charged)
      local actual = (charge % 2 == 1 and limit[1] > 0) and amount or 0
      adjust(limit, 0, admitted, amount, 0, actual)
      charged[#charged + 1] = actual
    end
    local mark = pack("<BddddBB", EXPIRED, now + KEEP_MS, admitted, offer, output, charge, count)
    call("HSET", key, id, mark .. pack(doubles(count), unpack(charged)) .. names)
    return now + KEEP_MS
  end

  -- Ends the reservations past their lease among one page of the hash.
  local function collect(key, now)
    local account = open(key)
    local head = account.head
    local page = call("HSCAN", key, string.format("%.0f", head[5]), "COUNT", PAGE)
    for i = 1, #page[2], 2 do
      local id, record = page[2][i], page[2][i + 1]
      if sub(id, 1, 1) == "#" then
        local expires = unpack_struct("<d", record, 2)
        if expires <= now then expires = expire(key, account, id, record, now) end
        head[6] = math.min(head[6], expires)
      end
    end
    head[5] = tonumber(page[1])
    if head[5] == 0 then head[4], head[6] = head[6], NEVER end
    return close(key, account)
  end

  -- Adds up what operators added to each limit by now: `set` in place of the amount, `raise` and
  -- `credit` to it. What a window that ended used beyond its amount, credits have paid: `ended`
  -- has its sum, where one did. Returns the additions by number, and the lines that remain.
  local function add_up(text, names, limit, ended, now)
    local number, added, over, count = {}, {}, {}, 0
    for name in string.gmatch(names, "%S+") do
      count = count + 1
      number[name], added[count] = count, 0
    end
    for kind, name, amount, till in string.gmatch(text, ENTRY) do
      local i = number[name]
      if i and kind ~= "credit" and in_force(till, now) then
        added[i] = kind == "set" and amount - limit[6 * i - 3] or added[i] + amount
      end
    end
    for i = 1, count do
      over[i] = math.max(0, (ended[i] or 0) - limit[6 * i - 3] - added[i])
    end
    text = string.gsub(text, ENTRY, function(kind, name, amount, till, id)
      local i = number[name]
      if not i or kind ~= "credit" or not in_force(till, now) then return nil end
      local paid = math.min(amount, over[i])
      over[i], added[i] = over[i] - paid, added[i] + amount - paid
      return string.format("credit %s %.0f %s %s\n", name, amount - paid, till, id)
    end)
    return added, text
  end

  return { prolong = prolong, remember = remember, add_up = add_up, open = open, limit_of = limit_of, close = close, reorder = reorder, collect = collect }
end
