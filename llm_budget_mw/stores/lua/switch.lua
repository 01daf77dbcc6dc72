-- Stops calls by a name (of a subject, a model, a feature, `*` for all), or lets them go on.
-- KEYS[1]  the switchboard: a hash of names to "until reason"; a time of 0 never ends. It is the
--          one key that does not expire: a switch nobody turned back must not turn by itself
-- ARGV[1]  given time ms (0: the server's), f64
-- ARGV[2]  `stop`, `resume` or `show`
-- ARGV[3], ARGV[4]  stop: name, value. resume: name
-- Reply: 1 changed, 0 not; then names and values in force. Read by stores/_commands.py.
local MOST = 1000
local key, verb, name = KEYS[1], ARGV[2], ARGV[3]
local now = clock(key, unpack_struct("<d", ARGV[1]))
local changed, shown = 0, { 0 }
if verb == "stop" then
  if call("HLEN", key) >= MOST and call("HEXISTS", key, name) == 0 then return { -1 } end
  changed = call("HGET", key, name) ~= ARGV[4] and 1 or 0
  call("HSET", key, name, ARGV[4])
elseif verb == "resume" then
  changed = call("HDEL", key, name)
end
local switches = call("HGETALL", key)
for i = 1, #switches, 2 do
  if in_force(string.match(switches[i + 1], "^%d+"), now) then
    shown[#shown + 1], shown[#shown + 2] = switches[i], switches[i + 1]
  elseif verb ~= "show" then
    call("HDEL", key, switches[i])
  end
end
shown[1] = changed
return shown
