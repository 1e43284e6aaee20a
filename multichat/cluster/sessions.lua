-- Sessions: which can be resumed, by how many bytes those take that nobody has.
--
-- A session is away while no client has it.  It ends after its time; and while those away are too
-- many or take too much, the oldest of the place that takes most ends: of several places that take
-- about as much, the oldest of all.  A place is the origin of their clients, as for limits by
-- address; a session without one is a place of its own.
--
-- Keys, with `multichat:` before each:
--   sessions           hash: digest -> {client, generation, record, origin; away: bytes}, packed
--   sessions:left      sorted set: digests of those away, by when they left
--   sessions:away      hash: client -> digest, of those away
--   sessions:bytes     what those away take
--   sessions:of        hash: place -> what those away take there
--   sessions:places    sorted set: `OLDEST PLACE`, by what they take there, below zero
--   sessions:of:PLACE  sorted set: the digests of those away there, by when they left
--
-- Invariant: `sessions:bytes` is the sum of all `bytes`, and of all values in `sessions:of`.
--
-- Follows library.lua in one library; directory.lua and import.lua use it.

local sessions = {}

do
  local SESSIONS, LEFT, AWAY = P .. 'sessions', P .. 'sessions:left', P .. 'sessions:away'
  local BYTES, PLACES, OF = P .. 'sessions:bytes', P .. 'sessions:places', P .. 'sessions:of'
  local CLIENTS = P .. 'clients'

  -- What a session away takes besides its record and its nonces: 900 bytes in Valkey 9.1, 1,170 in
  -- Redis 7.0, if it is the only one of its place.
  local SESSION_BYTES = 1150

  -- Places that take as many of these take about as much: one session with few nonces is one.
  local UNIT = 2048

  -- Longer than a node that is cut off keeps its run: its lease, 10 s, and until others notice.
  local ENDED_MS = 60000

  local function text(number) return string.format('%.0f', number) end

  local function place_of(digest, session)
    return session.origin ~= '' and session.origin or digest
  end

  local function save(digest, session)
    call('HSET', SESSIONS, digest, cmsgpack.pack(session))
  end

  -- The sum of what its nonces take is exact: an average of some could be made far too small.
  local function measure(session)
    local client = text(session.client)
    local bytes = SESSION_BYTES + #session.record
    for _, key in ipairs({ nonces_key(client), order_key(client) }) do
      bytes = bytes + (call('MEMORY', 'USAGE', key, 'SAMPLES', 0) or 0)
    end
    return bytes
  end

  -- The member of `sessions:places` for *place*, nil if no session away is of there.
  local function rank_of(place)
    local oldest = call('ZRANGE', OF .. ':' .. place, 0, 0, 'WITHSCORES')
    return oldest[1] and ('%015.0f %s'):format(tonumber(oldest[2]), place)
  end

  -- Changes the digests in *place* by *command* with what follows, and what they take by *bytes*.
  local function change_place(place, bytes, command, ...)
    local before = rank_of(place)
    if command then call(command, OF .. ':' .. place, ...) end
    local after = rank_of(place)
    call('INCRBY', BYTES, text(bytes))
    local total = call('HINCRBY', OF, place, text(bytes))
    if before and before ~= after then call('ZREM', PLACES, before) end
    if after then
      call('ZADD', PLACES, text(-math.ceil(total / UNIT)), after)
    else
      call('HDEL', OF, place)
    end
  end

  local function uncount(digest, session)
    change_place(place_of(digest, session), -session.bytes, 'ZREM', digest)
    call('ZREM', LEFT, digest)
    call('HDEL', AWAY, text(session.client))
  end

  function sessions.load(digest)
    local session = call('HGET', SESSIONS, digest)
    return session and cmsgpack.unpack(session) or nil
  end

  -- Saves *session*, which a client has.
  function sessions.keep(digest, session)
    local before = sessions.load(digest)
    if before and before.bytes then uncount(digest, before) end
    session.bytes = nil
    save(digest, session)
  end

  -- Saves *session*, which no client has from *ms* on; *origin* is that of its client, if known.
  function sessions.leave(digest, session, origin, ms)
    local before = sessions.load(digest)
    if before and before.bytes then uncount(digest, before) end
    if origin ~= '' then session.origin = origin end
    session.origin = session.origin or ''
    session.bytes = measure(session)
    change_place(place_of(digest, session), session.bytes, 'ZADD', text(ms), digest)
    call('ZADD', LEFT, text(ms), digest)
    call('HSET', AWAY, text(session.client), digest)
    save(digest, session)
  end

  -- The session, if it can be resumed now, and how long it has been away, in ms.
  function sessions.find(digest, max_ms, ms)
    local session, left = sessions.load(digest), call('ZSCORE', LEFT, digest)
    if session and (not left or tonumber(left) + max_ms > ms) then
      return session, left and ms - tonumber(left) or 0
    end
  end

  -- The digest of the session that *client* has left, if it has.
  function sessions.away_of(client) return call('HGET', AWAY, client) end

  function sessions.is_away(digest) return call('ZSCORE', LEFT, digest) and true end

  function sessions.exists(digest)
    return digest ~= '' and call('HEXISTS', SESSIONS, digest) == 1
  end

  -- Ends a session, if there is one: nobody can resume it.
  function sessions.finish(digest)
    local session = sessions.load(digest)
    if not session then return end
    if session.bytes then uncount(digest, session) end
    local client = text(session.client)
    call('HDEL', SESSIONS, digest)
    forget_nonces(client)
    if call('HEXISTS', CLIENTS, client) == 0 then end_generation(client) end
  end

  -- Forgets at most *most* generations of clients that have left for good before *ms*.
  local function forget_ended(ms, most)
    for _, client in ipairs(call('ZRANGEBYSCORE', ENDED, '-inf', text(ms), 'LIMIT', 0, most)) do
      call('ZREM', ENDED, client)
      if call('HEXISTS', CLIENTS, client) == 0 and call('HEXISTS', AWAY, client) == 0 then
        call('HDEL', GENERATIONS, client)
      end
    end
  end

  -- Ends at most *most* sessions whose time has ended, and as many of those above the limits.
  function sessions.purge(max_ms, max_count, max_bytes, ms, most)
    forget_ended(ms - ENDED_MS, most)
    for _, digest in ipairs(call('ZRANGEBYSCORE', LEFT, '-inf', text(ms - max_ms), 'LIMIT', 0, most)) do
      sessions.finish(digest)
    end
    for _ = 1, most do
      local bytes = tonumber(call('GET', BYTES) or 0)
      if call('ZCARD', LEFT) <= max_count and bytes <= max_bytes then return end
      local largest = call('ZRANGE', PLACES, 0, 0)[1]
      if not largest then return end
      sessions.finish(call('ZRANGE', OF .. ':' .. largest:match(' (.*)$'), 0, 0)[1])
    end
  end

  -- The nonces of *client* are more: of a message that was under way when it left.
  function nonces_have_grown(client)
    local digest = call('HGET', AWAY, client)
    local session = digest and sessions.load(digest)
    if session and session.bytes then
      local before = session.bytes
      session.bytes = measure(session)
      change_place(place_of(digest, session), session.bytes - before)
      save(digest, session)
    end
  end
end
