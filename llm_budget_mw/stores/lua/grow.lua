-- Raises what a running call holds to more output, in the windows of its admission, or writes nothing.
-- KEYS     the accounts of the admission (layout in ledger.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  limits as in admit.lua
-- ARGV[3]  given time ms (0: the server's), output to hold in all; of the granted offer: ceiling,
--          tokens per output token, nano-dollars per output token, subjects it is not charged to
--          (a bit each); all f64
-- ARGV[4..] names of the limits of each subject, joined by spaces
-- Reply: the output held now, which is never less than before; 0 if it is no longer held
-- somewhere. Read by stores/_commands.py.
local id, spec = ARGV[1], ARGV[2]
local given, output, ceiling, tokens, nano, spares = unpack_struct("<dddddd", ARGV[3])
local now, rare, per_output = clock(KEYS[1], given), rarely(), { 0, 0, tokens, nano }

-- Returns what counts against a limit in the window of the admission; nil if that is long over.
local function used(numbers, admitted, kind, length)
  local start, committed, held, previous_start, previous = unpack(numbers)
  if start > admitted then return previous_start <= admitted and previous or nil end
  if kind == 2 and previous_start == start - length then
    local left = math.max(0, math.min(length, length - (now - start)))
    return committed + held + math.ceil(previous * left / length)
  end
  return committed + held
end

-- Returns what a limit has from the window before.
local function carried(numbers, kind, from, till, amount, most)
  if most == 0 or numbers[4] == 0 then return 0 end
  local length = kind == 3 and till - from or from
  local before = numbers[4] >= numbers[1] - 1.5 * length and numbers[5] or 0
  return math.max(0, math.min(most, amount - before))
end

-- Takes one subject apart; nil if it holds nothing.
local function read(s, spec_at)
  local key, count, _, at = KEYS[s], unpack_struct("<dd", spec, spec_at)
  local stored = call("HMGET", key, id, "+")
  local record = stored[1]
  if not record or unpack_struct("<B", record) ~= HELD then return nil end
  local _, expires, admitted, offer, had, charge, _, from = unpack_struct("<BddddBB", record)
  return {
    key = key, count = count, limit = { unpack_struct(doubles(6 * count), spec, at) },
    record = record, from = from, additions = stored[2] or "", account = rare.open(key),
    admitted = admitted, had = had, steps = {}, after = at + 48 * count,
  }
end

-- Notes by how much each limit of a subject grows; false if one has no room for that.
local function fits(s, subject)
  local limit, names, n = subject.limit, ARGV[3 + s], 0
  local added = rare.add_up(subject.additions, names, limit, {}, now)
  for name in string.gmatch(names, "%S+") do
    local p = 6 * n
    local resource, kind, amount, from, till, most = unpack(limit, p + 1, p + 6)
    n = n + 1
    local step = has_bit(spares, 2 ^ (s - 1)) and 0 or per_output[math.abs(resource)] * (output - subject.had)
    local numbers = rare.limit_of(subject.key, subject.account, name)
    local taken = used(numbers, subject.admitted, kind, from)
    if step > 0 and resource > 0 and taken then
      local usable = amount + added[n] + carried(numbers, kind, from, till, amount, most)
      if taken + step > math.floor(usable * ceiling) then return false end
    end
    subject.steps[n] = { name, step }
  end
  return true
end

local subjects, held, spec_at, growing = {}, NEVER, 1, true
for s = 1, #KEYS do
  local subject = read(s, spec_at)
  if not subject then return 0 end
  spec_at = subject.after
  if subject.had < output then
    subjects[#subjects + 1] = subject
    growing = fits(s, subject) and growing
  end
  held = math.min(held, subject.had)
end
if not growing then return held end

for _, subject in ipairs(subjects) do
  local key, record, from, amounts = subject.key, subject.record, subject.from, {}
  for n, step in ipairs(subject.steps) do
    adjust(rare.limit_of(key, subject.account, step[1]), 0, subject.admitted, -step[2], 0, 0)
    amounts[n] = unpack_struct("<d", record, from + 8 * n - 8) + step[2]
  end
  rare.close(key, subject.account)
  -- state, expires, admitted and offer stay in front of the output, two bytes and the names behind.
  local head, tail = sub(record, 1, 25) .. pack("<d", output), sub(record, 34, 35)
  call("HSET", key, id, head .. tail .. pack(doubles(#amounts), unpack(amounts)) .. sub(record, from + 8 * #amounts))
end
return math.max(held, output)
