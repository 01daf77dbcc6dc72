-- Takes, keeps or gives back one of the slots that share what is admitted without the store.
-- May be repeated: who has a slot gets that one again.
-- KEYS     the slots, <prefix>:1:{outage}:slot:<n>: each a string, the id of the process that has it
-- ARGV[1]  id of the process
-- ARGV[2]  ms after which the slot is free again unless it is kept; 0 gives it back
-- Reply: number of the slot the process has, from 1; 0 for none. Read by stores/_commands.py.
local holder, lease = ARGV[1], tonumber(ARGV[2])
local free = 0

for number, key in ipairs(KEYS) do
  local owner = call("GET", key)
  if owner == holder then
    if lease == 0 then
      call("DEL", key)
      return 0
    end
    call("PEXPIRE", key, lease)
    return number
  end
  if not owner and free == 0 then free = number end
end
if lease == 0 or free == 0 then return 0 end
call("SET", KEYS[free], holder, "PX", lease)
return free
