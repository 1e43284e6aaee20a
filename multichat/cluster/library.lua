#!lua name=multichat

-- The functions that nodes call: the rooms' logs.  `sessions.lua` follows in the same library, and
-- then `directory.lua`.
--
-- Functions are atomic, not transactional: what they have written stays if they fail later.  So a
-- function validates before it writes, and writes first what the rest refers to: a message before
-- its nonces, both before the answer that a repeated call gets.  Once a message is stored, no failure
-- ends the call: its node would tell that it was not.
--
-- Keys, with `multichat:` before each (see `multichat.cluster.keys`):
--   log                 hash: era, primary, last_epoch, bytes, deleted
--   nodes               hash: node -> run; a node that others have expired has none
--   generations         hash: client -> generation
--   generations:ended   sorted set: clients that have left for good, by when, in ms
--   run:RUN             hash: last, the sequence, and the last answers by sequence modulo ANSWERS
--   room:ROOM           hash: first, next, bytes, epoch, era
--   log:ROOM            stream: a block of messages with the id LAST-COUNT, as one field
--   epochs:ROOM         list: `EPOCH NUMBER`, the number from which it is valid
--   oldest              sorted set: rooms with messages, by the time of the oldest in ms
--   empty               sorted set: rooms whose messages are deleted, by when that was noticed in ms
--   nonces:CLIENT       hash: nonce -> `CHECK EPOCH NUMBER ROOM`; `-` for an unknown check or epoch
--                       A private message has no epoch; its number is 1 if its fate is unknown.
--   nonce_order:CLIENT  list: its nonces, the oldest first
-- Channels: room:ROOM gets packets, each after a line with its length in bytes; of a large one only
-- the first line.  It also gets `trimmed FIRST`.
--
-- A packet is a block of messages: the line `FIRST COUNT EPOCH MS RUN SEQUENCE INDEX`, and after the
-- LF what the node has packed.

local VERSION = 1
local DIGEST = '' -- of this text, written by `multichat.cluster.library`

local P = 'multichat:'
local LOG, NODES, GENERATIONS = P .. 'log', P .. 'nodes', P .. 'generations'
local OLDEST, EMPTY = P .. 'oldest', P .. 'empty'
local ENDED = P .. 'generations:ended'

-- A node has at most this many calls in flight, so no older answer is asked for.
local ANSWERS = 64

-- A node that is away for longer than this takes a new run.
local RUN_MS = 3600000

-- As `multichat.protocol.fields.MAX_UNACCEPTED`; and how many more are kept until those are
-- forgotten together.
local NONCES, MORE_NONCES = 256, 64

-- A larger packet is not pushed: nodes that have the room open read it.
local PUSHED_BYTES = 16384

-- The packets of a call are pushed together, up to this size.
local PUSH_BYTES = 65536

-- What a block takes besides its packet.
local BLOCK_BYTES = 64

-- A room without messages is forgotten after a day, as sessions are that know ids of it.
local FORGET_MS, FORGET_ROOMS = 86400000, 100

-- The epochs of a room that are known, the newest.
local EPOCHS = 100

-- How many entries are read at once: 1 MiB of the largest.
local PAGE = 16

-- Lua's stack holds about 8,000 values.
local VALUES = 2000

local APPENDED, FENCED, FAILED, KNOWN = 0, 1, 2, 3

-- `redis.call` exists only while a function runs.
local function call(...) return redis.call(...) end

-- Counts what the nonces of a client take whose session is away: in sessions.lua.
local nonces_have_grown

local function room_key(room) return P .. 'room:' .. room end
local function log_key(room) return P .. 'log:' .. room end
local function epochs_key(room) return P .. 'epochs:' .. room end
local function nonces_key(client) return P .. 'nonces:' .. client end
local function order_key(client) return P .. 'nonce_order:' .. client end

local function now_ms()
  local time = call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Calls *command* on *key* with the values of *list*, in pieces; returns the last reply.
local function in_pieces(command, key, list)
  local reply
  for start = 1, #list, VALUES do
    reply = call(command, key, unpack(list, start, math.min(start + VALUES - 1, #list)))
  end
  return reply
end

local function malformed(what)
  return redis.error_reply('MALFORMED multichat: ' .. what)
end

-- Whether *run* is the one that *node* has now: others may have expired it while it was frozen.
local function is_current(node, run)
  return call('HGET', NODES, node) == run
end

-- Whether *client* has been resumed elsewhere since it had this *generation*.
local function is_fenced(client, generation)
  local stored = call('HGET', GENERATIONS, client)
  return stored and tonumber(stored) > tonumber(generation)
end

-- Forgets the generation of *client*, which has left for good: if another node has had it before,
-- only when the run of that node has surely ended, or had all answers.
local function end_generation(client)
  if tonumber(call('HGET', GENERATIONS, client) or 0) > 1 then
    call('ZADD', ENDED, now_ms(), client)
  else
    call('HDEL', GENERATIONS, client)
  end
end

-- Remembers *nonces* of *client*, with their *values*, and forgets the oldest above the limit.
-- They are forgotten between *ms* and twice that after the last ones.
local function remember_nonces(client, nonces, values, ms)
  local key, order = nonces_key(client), order_key(client)
  local count = #nonces
  local pairs_ = {}
  for i = 1, count do
    pairs_[2 * i - 1], pairs_[2 * i] = nonces[i], values[i]
  end
  in_pieces('HSET', key, pairs_)
  local length = in_pieces('RPUSH', order, nonces)
  if length > NONCES + MORE_NONCES then
    in_pieces('HDEL', key, call('LPOP', order, length - NONCES))
  end
  if call('PTTL', order) < ms then
    call('PEXPIRE', key, 2 * ms)
    call('PEXPIRE', order, 2 * ms)
  end
  nonces_have_grown(client)
end

-- The nonces of *client* with their values, the oldest first.
local function load_nonces(client)
  local nonces = call('LRANGE', order_key(client), 0, -1)
  local result = {}
  if #nonces > 0 then
    local values = call('HMGET', nonces_key(client), unpack(nonces))
    for i, nonce in ipairs(nonces) do
      if values[i] then
        result[#result + 1], result[#result + 2] = nonce, values[i]
      end
    end
  end
  return result
end

local function forget_nonces(client)
  call('DEL', nonces_key(client), order_key(client))
end

-- Removes from *block* the messages whose nonces are known; returns what is known of them:
-- index, epoch, number, room, whether the check is the same.
local function known_nonces(block)
  local known = {}
  local key = nonces_key(block.client)
  for start = 1, #block.nonces, VALUES do
    local stop = math.min(start + VALUES - 1, #block.nonces)
    for i, value in ipairs(call('HMGET', key, unpack(block.nonces, start, stop))) do
      local index = start + i - 1
      if value and block.nonces[index] ~= '' then
        local check, epoch, number, room = value:match('^(%S+) (%S+) (%d+) (.*)$')
        local same = check == '-' or check == block.checks:sub(8 * index - 7, 8 * index)
        known[#known + 1] = { index - 1, epoch, tonumber(number), room, same and 1 or 0 }
      end
    end
  end
  if #known == 0 then return known end
  local gone, texts, nonces, checks = {}, {}, {}, {}
  for _, one in ipairs(known) do gone[one[1] + 1] = true end
  local fields = cmsgpack.unpack(block.payload)
  local index = 0
  for text in (fields[6] .. '\n'):gmatch('(.-)\n') do
    index = index + 1
    if not gone[index] then
      texts[#texts + 1], nonces[#nonces + 1] = text, block.nonces[index]
      checks[#checks + 1] = block.checks:sub(8 * index - 7, 8 * index)
    end
  end
  fields[6] = table.concat(texts, '\n')
  block.payload, block.count = cmsgpack.pack(fields), #texts
  block.nonces, block.checks = nonces, table.concat(checks)
  return known
end

local function read_meta(room)
  local meta = call('HMGET', room_key(room), 'first', 'next', 'epoch', 'era', 'bytes')
  return {
    first = tonumber(meta[1] or 0),
    next = tonumber(meta[2] or 0),
    epoch = meta[3],
    era = meta[4],
    bytes = tonumber(meta[5] or 0),
  }
end

-- What a call knows of *room*, and has done there.
local function room_of(from, room)
  local found = from.rooms[room]
  if not found then
    found = read_meta(room)
    found.was_empty = found.first == found.next
    found.packets, found.pushes, found.pushed = {}, {}, 0
    from.rooms[room] = found
  end
  return found
end

-- Begins the era's epoch in the room, if it has none: it is valid from its next message on.
local function begin_epoch(meta, from)
  if meta.epoch and meta.era == from.era then return meta.epoch end
  if not meta.new_epoch then
    local last = math.max(tonumber(call('HGET', LOG, 'last_epoch') or 0) + 1, from.ms)
    call('HSET', LOG, 'last_epoch', last)
    meta.new_epoch = string.format('%011x', last)
  end
  return meta.new_epoch
end

-- Raises if the engine stores nothing; then nothing has been written.
local function store(block, packet, number)
  call('XADD', log_key(block.room), number.last .. '-' .. block.count, 'p', packet)
end

local function note_stored(meta, number, packet, line, from)
  local size = #packet + BLOCK_BYTES
  meta.next, meta.bytes = number.last + 1, meta.bytes + size
  from.bytes = from.bytes + size
  if meta.new_epoch then
    meta.epoch, meta.era, meta.begun = meta.new_epoch, from.era, number.first
    meta.new_epoch = nil
  end
  local pushed = #packet <= PUSHED_BYTES and packet or line
  if meta.pushed + #pushed > PUSH_BYTES then
    meta.pushes[#meta.pushes + 1] = table.concat(meta.packets)
    meta.packets, meta.pushed = {}, 0
  end
  meta.packets[#meta.packets + 1] = #pushed .. '\n' .. pushed
  meta.pushed = meta.pushed + #pushed
  meta.is_changed = true
end

local function note_nonces(block, number, nonce_ms)
  local nonces, values = {}, {}
  local before = number.epoch .. ' '
  for i, nonce in ipairs(block.nonces) do
    if nonce ~= '' then
      nonces[#nonces + 1] = nonce
      values[#values + 1] = block.checks:sub(8 * i - 7, 8 * i)
        .. ' ' .. before .. number.first + i - 1 .. ' ' .. block.room
    end
  end
  if #nonces > 0 then remember_nonces(block.client, nonces, values, nonce_ms) end
end

local function append_block(block, index, from)
  if (from.generations[index] or 0) > block.generation then return { FENCED, '', 0, 0, {} } end
  local known = {}
  if #block.nonces > 0 then known = known_nonces(block) end
  if block.count == 0 then return { KNOWN, '', 0, 0, known } end
  local meta = room_of(from, block.room)
  local number = {
    first = meta.next,
    last = meta.next + block.count - 1,
    epoch = begin_epoch(meta, from),
  }
  local line = number.first .. ' ' .. block.count .. ' ' .. number.epoch .. from.line .. index - 1
  local packet = line .. '\n' .. block.payload
  store(block, packet, number)
  -- It is stored, whatever fails now.
  note_stored(meta, number, packet, line, from)
  pcall(note_nonces, block, number, from.nonce_ms)
  return { APPENDED, number.epoch, number.first, from.ms, known }
end

-- A command after something was stored: what it lacks then is less than a wrong answer.
local function attempt(...) return pcall(call, ...) end

-- Writes down what a call has done in *room*, and pushes its packets.
local function finish_room(room, meta, from)
  local key = room_key(room)
  attempt(
    'HSET', key, 'first', meta.first, 'next', meta.next, 'bytes', meta.bytes,
    'epoch', meta.epoch, 'era', meta.era
  )
  if meta.was_empty then
    attempt('ZADD', OLDEST, from.ms, room)
    attempt('ZREM', EMPTY, room)
  end
  if meta.begun then
    attempt('RPUSH', epochs_key(room), meta.epoch .. ' ' .. meta.begun)
    attempt('LTRIM', epochs_key(room), -EPOCHS, -1)
  end
  for _, push in ipairs(meta.pushes) do attempt('PUBLISH', key, push) end
  attempt('PUBLISH', key, table.concat(meta.packets))
end

-- Continues a room after its stream if its numbers are behind it: they could not be written down, or
-- somebody has deleted them.  Without this it would refuse every message.
local function repair_room(room)
  local meta = read_meta(room)
  local newest = call('XREVRANGE', log_key(room), '+', '-', 'COUNT', 1)[1]
  local last = newest and tonumber(newest[1]:match('^%d+')) or -1
  if last >= meta.next then call('HSET', room_key(room), 'next', last + 1) end
end

-- The generations that the engine has of the clients of *blocks*.
local function generations_of(blocks)
  local clients, generations = {}, {}
  for index, block in ipairs(blocks) do clients[index] = block.client end
  for start = 1, #clients, VALUES do
    local stop = math.min(start + VALUES - 1, #clients)
    for i, stored in ipairs(call('HMGET', GENERATIONS, unpack(clients, start, stop))) do
      generations[start + i - 1] = stored and tonumber(stored) or nil
    end
  end
  return generations
end

-- node run sequence nonce_ms, then for each block:
-- room client generation count payload checks nonces nonce...
-- Returns the packed answers of the blocks: status epoch first ms known, with FAILED and a reason.
-- A repeated call appends nothing and returns the first answer.
local function append(_, args)
  local node, run, sequence, nonce_ms = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  if not (sequence and nonce_ms) then return malformed('append') end
  local blocks, at = {}, 5
  while at <= #args do
    local block = {
      room = args[at],
      client = args[at + 1],
      generation = tonumber(args[at + 2]),
      count = tonumber(args[at + 3]),
      payload = args[at + 4],
      checks = args[at + 5],
      nonces = {},
    }
    local nonces = tonumber(args[at + 6])
    if not (block.generation and block.count and nonces) or #args < at + 6 + nonces then
      return malformed('append')
    end
    for i = 1, nonces do block.nonces[i] = args[at + 6 + i] end
    blocks[#blocks + 1] = block
    at = at + 7 + nonces
  end
  local run_key, slot = P .. 'run:' .. run, sequence % ANSWERS
  local done = call('HMGET', run_key, 'last', slot)
  if done[1] and sequence <= tonumber(done[1]) then
    local of, answer = (done[2] or ''):match('^(%d+) (.*)$')
    if tonumber(of) == sequence then return answer end
    return redis.error_reply('FORGOTTEN multichat: the answer to an old call')
  end
  if not is_current(node, run) then
    return redis.error_reply('FENCED multichat: another run of this node, or none')
  end
  local ms = now_ms()
  local from = {
    ms = ms,
    era = call('HGET', LOG, 'era') or '0',
    line = ' ' .. ms .. ' ' .. run .. ' ' .. sequence .. ' ',
    generations = generations_of(blocks),
    nonce_ms = nonce_ms,
    rooms = {},
    bytes = 0,
  }
  local answers = {}
  for index, block in ipairs(blocks) do
    -- A block that fails takes no other with it, nor the answers of those before it.
    local ok, answer = pcall(append_block, block, index, from)
    if not ok then
      local reason = type(answer) == 'table' and (answer.err or 'failed') or tostring(answer)
      answer = { FAILED, reason, 0, 0, {} }
      pcall(repair_room, block.room)
    end
    answers[index] = answer
  end
  for room, meta in pairs(from.rooms) do
    if meta.is_changed then finish_room(room, meta, from) end
  end
  if from.bytes > 0 then attempt('HINCRBY', LOG, 'bytes', from.bytes) end
  local packed = cmsgpack.pack(answers)
  attempt('HSET', run_key, 'last', sequence, slot, sequence .. ' ' .. packed)
  attempt('PEXPIRE', run_key, RUN_MS)
  return packed
end

-- primary era epoch: which primary the caller sees, and the highest era and epoch that it knows.
-- Returns the era, which is a new one if the primary is another than before.
local function begin_era(_, args)
  local primary, era, epoch = args[1], tonumber(args[2]), tonumber(args[3])
  if not (era and epoch) then return malformed('begin_era') end
  local log = call('HMGET', LOG, 'primary', 'era', 'last_epoch')
  if log[1] == primary then return tonumber(log[2]) end
  era = math.max(tonumber(log[2] or 0), era) + 1
  epoch = math.max(tonumber(log[3] or 0), epoch)
  call('HSET', LOG, 'primary', primary, 'era', era, 'last_epoch', epoch)
  return era
end

-- room epoch, for each room: the epoch that the caller knows, empty for none.
-- Returns for each: first next epoch, and the room's epochs with their numbers if the epoch differs.
local function tails(_, args)
  local result = {}
  for i = 1, #args, 2 do
    local room, meta = args[i], read_meta(args[i])
    local epochs = {}
    if meta.epoch and meta.epoch ~= args[i + 1] then
      epochs = call('LRANGE', epochs_key(room), 0, -1)
    end
    result[#result + 1] = { meta.first, meta.next, meta.epoch or '', epochs }
  end
  return result
end

local function block_of(entry)
  local last, count = entry[1]:match('^(%d+)-(%d+)$')
  return tonumber(last) - tonumber(count) + 1, tonumber(last), entry[2][2]
end

-- room start stop max_bytes: returns the packets with messages from *start* up to and without
-- *stop*, until they are *max_bytes* together; at least one.
local function read(_, args)
  local key = log_key(args[1])
  local from, stop, left = args[2], tonumber(args[3]), tonumber(args[4])
  local packets = {}
  while true do
    local entries = call('XRANGE', key, from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(entries) do
      local first, _, packet = block_of(entry)
      if first >= stop or (left < #packet and #packets > 0) then return packets end
      packets[#packets + 1] = packet
      left = left - #packet
    end
    if #entries < PAGE then return packets end
    from = '(' .. entries[#entries][1]
  end
end

-- room stop max_messages max_bytes: returns the packets with the newest messages below *stop*, the
-- newest first, until they are that many messages or bytes; at least one.
local function read_before(_, args)
  local key = log_key(args[1])
  local stop, messages, left = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local packets = {}
  if stop < 1 then return packets end
  local function take(entry)
    local first, last, packet = block_of(entry)
    if first >= stop then return end
    packets[#packets + 1] = packet
    messages = messages - (math.min(last + 1, stop) - first)
    left = left - #packet
  end
  -- The block of the message before *stop* may also have later ones.
  for _, entry in ipairs(call('XRANGE', key, stop - 1, '+', 'COUNT', 1)) do take(entry) end
  local to = '(' .. (stop - 1) .. '-0'
  while messages > 0 and left > 0 and stop > 1 do
    local entries = call('XREVRANGE', key, to, '-', 'COUNT', PAGE)
    for _, entry in ipairs(entries) do
      if messages <= 0 or left <= 0 then break end
      take(entry)
    end
    if #entries < PAGE then break end
    to = '(' .. entries[#entries][1]
  end
  return packets
end

-- Deletes the oldest blocks of *room* while *is_over(meta, ms, last)*, at most *budget* of them.
-- Returns how many messages, blocks and bytes; and whether the room has got out of the way, as it
-- does without a block if its stream is gone, which somebody has deleted.
local function trim_room(room, is_over, budget, now)
  local key, meta = room_key(room), read_meta(room)
  local from, bytes, blocks = '-', 0, 0
  local before, oldest = meta.first, nil
  while not oldest and meta.first < meta.next do
    local entries = call('XRANGE', log_key(room), from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(entries) do
      local _, last, packet = block_of(entry)
      local ms = tonumber(packet:match('^%d+ %d+ %S+ (%d+)'))
      if blocks >= budget or not is_over(meta, ms, last) then
        oldest = ms
        break
      end
      local size = #packet + BLOCK_BYTES
      meta.first, meta.bytes = last + 1, meta.bytes - size
      bytes, blocks = bytes + size, blocks + 1
    end
    if #entries == 0 then meta.first = meta.next end
    if not oldest and #entries > 0 then from = '(' .. entries[#entries][1] end
  end
  if blocks == 0 and oldest then return 0, 0, 0, false end
  local messages = meta.first - before
  if not oldest then
    bytes, meta.bytes = bytes + meta.bytes, 0
  end
  call('XTRIM', log_key(room), 'MINID', meta.first)
  call('HSET', key, 'first', meta.first, 'bytes', meta.bytes)
  if oldest then
    call('ZADD', OLDEST, oldest, room)
  else
    call('ZREM', OLDEST, room)
    call('ZADD', EMPTY, now, room)
  end
  call('HINCRBY', LOG, 'bytes', -bytes)
  call('HINCRBY', LOG, 'deleted', messages)
  call('PUBLISH', key, 'trimmed ' .. meta.first)
  return messages, blocks, bytes, true
end

-- Forgets rooms that have had no message for long and are open nowhere: they begin again, in a later
-- epoch.  Not while a node is away, which may have them open.
local function forget_rooms(now)
  local nodes = call('PUBSUB', 'NUMSUB', P .. 'directory')
  if tonumber(nodes[2]) < call('HLEN', NODES) then return end
  local rooms = call('ZRANGEBYSCORE', EMPTY, '-inf', now - FORGET_MS, 'LIMIT', 0, FORGET_ROOMS)
  for _, room in ipairs(rooms) do
    local open = call('PUBSUB', 'NUMSUB', room_key(room))
    if tonumber(open[2]) > 0 then
      call('ZADD', EMPTY, now, room)
    else
      call('DEL', room_key(room), log_key(room), epochs_key(room))
      call('ZREM', EMPTY, room)
    end
  end
end

-- cursor age_ms messages bytes blocks: deletes what is above the limits, 0 for no limit, at most
-- about *blocks* blocks.  Looks at some rooms for *messages*: pass the cursor on.
-- Returns the time in ms, the cursor, whether there is more to delete, and for age, messages and
-- bytes how many messages were deleted, and of which rooms.
local function trim(_, args)
  local age, most, max_bytes = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local budget, cursor = tonumber(args[5]), args[1]
  local ms = now_ms()
  local deleted = { { 0, {} }, { 0, {} }, { 0, {} } }
  local function count(kind, room, is_over, limit)
    local messages, blocks, bytes, is_changed =
      trim_room(room, is_over, math.min(limit, budget), ms)
    budget = budget - (is_changed and math.max(blocks, 1) or 0)
    if messages > 0 then
      local rooms = deleted[kind][2]
      deleted[kind][1] = deleted[kind][1] + messages
      if rooms[#rooms] ~= room then rooms[#rooms + 1] = room end
    end
    return bytes, is_changed
  end
  if age > 0 then
    local before = ms - age
    while budget > 0 do
      local room = call('ZRANGE', OLDEST, 0, 0, 'WITHSCORES')
      if #room == 0 or tonumber(room[2]) > before then break end
      local _, is_changed = count(1, room[1], function(_, at) return at <= before end, budget)
      if not is_changed then break end
    end
  end
  if most > 0 and budget > 0 then
    local scanned = call('ZSCAN', OLDEST, cursor, 'COUNT', 100)
    cursor = scanned[1]
    for i = 1, #scanned[2], 2 do
      if budget <= 0 then break end
      -- The rest of a block may be above the limit: a block is deleted if none of it is needed.
      count(2, scanned[2][i], function(meta, _, last)
        return meta.next - last - 1 >= most
      end, budget)
    end
  end
  if max_bytes > 0 then
    local bytes = tonumber(call('HGET', LOG, 'bytes') or 0)
    while bytes > max_bytes and budget > 0 do
      local rooms = call('ZRANGE', OLDEST, 0, 1, 'WITHSCORES')
      if #rooms == 0 then break end
      -- Up to the oldest message of the next room, so that the oldest of all are deleted first.
      local until_ = rooms[4] and tonumber(rooms[4]) or math.huge
      local needed = bytes - max_bytes
      local stored = nil
      local freed, is_changed = count(3, rooms[1], function(meta, at)
        stored = stored or meta.bytes
        return at <= until_ and stored - meta.bytes < needed
      end, budget)
      if not is_changed then break end
      bytes = bytes - freed
    end
  end
  forget_rooms(ms)
  return { ms, cursor, budget <= 0 and 1 or 0, deleted }
end

local function version() return { VERSION, DIGEST } end

redis.register_function { function_name = 'multichat_append', callback = append }
redis.register_function { function_name = 'multichat_begin_era', callback = begin_era }
redis.register_function {
  function_name = 'multichat_tails', callback = tails, flags = { 'no-writes' }
}
redis.register_function {
  function_name = 'multichat_read', callback = read, flags = { 'no-writes' }
}
redis.register_function {
  function_name = 'multichat_read_before', callback = read_before, flags = { 'no-writes' }
}
-- Deleting also works above the engine's `maxmemory`.
redis.register_function {
  function_name = 'multichat_trim', callback = trim, flags = { 'allow-oom' }
}
redis.register_function {
  function_name = 'multichat_version', callback = version, flags = { 'no-writes' }
}
