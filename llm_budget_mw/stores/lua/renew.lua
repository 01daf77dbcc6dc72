-- Prolongs the lease of a reservation whose call is still running; never shortens it.
-- KEYS     the accounts of the admission (layout in ledger.lua)
-- ARGV[1]  "#" and the reservation id
-- ARGV[2]  given time ms (0: the server's), lease ms; both f64
-- Reply: 1 prolonged, 0 it is no longer held somewhere. Read by stores/_commands.py.
local id = ARGV[1]
local given, lease = unpack_struct("<dd", ARGV[2])
local now, held = clock(KEYS[1], given), 1
for s = 1, #KEYS do
  local key = KEYS[s]
  local record = call("HGET", key, id)
  local state, expires
  if record then state, expires = unpack_struct("<Bd", record) end
  if state == HELD then
    -- `due` stays where it is: too early a collection finds nothing, too late a one loses time.
    call("HSET", key, id, pack("<Bd", HELD, math.max(expires, now + lease)) .. sub(record, 10))
    rarely().prolong(key, lease) -- or the account would die under a call longer than its windows
  else
    held = 0
  end
end
return held
