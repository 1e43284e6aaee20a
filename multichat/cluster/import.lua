-- `multichat journal import`: rooms, accounts, topics and sessions of a journal.
--
-- Refused while a node runs, because nobody would follow what is imported.  Each function leaves
-- what is there already, so that an import which was aborted is repeated.
--
-- Follows directory.lua in one library; its keys are described there, in library.lua and in
-- sessions.lua.

do
  local ACCOUNTS, ACCOUNT_KEYS = P .. 'accounts', P .. 'accounts:keys'
  local TOPICS, EVER = P .. 'topics', P .. 'clients:ever'

  -- Return an error if a node runs.
  local function occupied()
    for _, node in ipairs(call('HKEYS', NODES)) do
      if call('EXISTS', P .. 'lease:' .. node) == 1 then
        return redis.error_reply('OCCUPIED multichat: a node runs')
      end
    end
  end

  -- clients epoch: the highest number of a client and the highest epoch of the journal.
  local function import_begin(_, args)
    local error = occupied()
    if error then return error end
    if tonumber(call('GET', EVER) or '0') < tonumber(args[1]) then call('SET', EVER, args[1]) end
    local epoch = tonumber(args[2])
    if tonumber(call('HGET', LOG, 'last_epoch') or '0') < epoch then
      call('HSET', LOG, 'last_epoch', args[2])
    end
    return 'OK'
  end

  -- room first next epochs, then EPOCH NUMBER for each epoch, then for each block:
  -- first count epoch ms payload.  A new room begins with *first*; *next* is the number that the
  -- caller believes to come next.
  local function import_room(_, args)
    local error = occupied()
    if error then return error end
    local room, next_, epochs = args[1], tonumber(args[3]), tonumber(args[4])
    local meta = read_meta(room)
    if not meta.epoch then
      meta.first, meta.next = tonumber(args[2]), tonumber(args[2])
    elseif meta.next ~= next_ then
      return redis.error_reply('MOVED multichat: the room has changed meanwhile')
    end
    local at, bytes = 5 + 2 * epochs, 0
    local was_empty = meta.first == meta.next
    for start = at, #args, 5 do
      local first, count, epoch, ms = unpack(args, start, start + 3)
      local last = tonumber(first) + tonumber(count) - 1
      local packet = first .. ' ' .. count .. ' ' .. epoch .. ' ' .. ms .. ' import 0 0\n'
        .. args[start + 4]
      call('XADD', log_key(room), last .. '-' .. count, 'p', packet)
      if was_empty then
        call('ZADD', OLDEST, ms, room)
        was_empty, meta.first = false, tonumber(first)
      end
      meta.next, bytes = last + 1, bytes + #packet + BLOCK_BYTES
    end
    call('DEL', epochs_key(room))
    for i = 5, at - 1, 2 do
      if i == 5 or tonumber(args[i + 1]) < meta.next then
        meta.epoch = args[i]
        call('RPUSH', epochs_key(room), args[i] .. ' ' .. args[i + 1])
      end
    end
    call('LTRIM', epochs_key(room), -EPOCHS, -1)
    -- The next message of a node begins an epoch: no era has this name.
    call('HSET', room_key(room), 'first', meta.first, 'next', meta.next, 'epoch', meta.epoch,
      'era', 'import', 'bytes', meta.bytes + bytes)
    if bytes > 0 then call('HINCRBY', LOG, 'bytes', bytes) end
    return meta.next
  end

  -- fold name hash key...: returns 1 if the account is new, 0 if it is there, -1 if another one has
  -- the name or one that looks like it.
  local function import_account(_, args)
    local error = occupied()
    if error then return error end
    local fold = args[1]
    local stored = call('HGET', ACCOUNTS, fold)
    if stored then return cmsgpack.unpack(stored).hash == args[3] and 0 or -1 end
    local keys = { unpack(args, 4) }
    for _, key in ipairs(keys) do
      if call('HEXISTS', ACCOUNT_KEYS, key) == 1 then return -1 end
    end
    call('HSET', ACCOUNTS, fold, cmsgpack.pack({ name = args[2], hash = args[3], keys = keys }))
    for _, key in ipairs(keys) do call('HSET', ACCOUNT_KEYS, key, fold) end
    return 1
  end

  -- room topic: returns 1 if the room had none.
  local function import_topic(_, args)
    return occupied() or call('HSETNX', TOPICS, args[1], args[2])
  end

  -- digest client record ms, then nonce value...: returns 1 if the session is new, 0 if it is there,
  -- -1 if the engine has another client of that number.
  local function import_session(_, args)
    local error = occupied()
    if error then return error end
    local digest, client = args[1], args[2]
    if sessions.exists(digest) then return 0 end
    if call('HEXISTS', GENERATIONS, client) == 1 then return -1 end
    local nonces, values = {}, {}
    for i = 5, #args, 2 do
      nonces[#nonces + 1], values[#values + 1] = args[i], args[i + 1]
    end
    if #nonces > 0 then
      forget_nonces(client)
      remember_nonces(client, nonces, values, tonumber(args[4]))
    end
    call('HSET', GENERATIONS, client, 1)
    local session = { client = tonumber(client), generation = 1, record = args[3] }
    sessions.leave(digest, session, '', now_ms())
    return 1
  end

  redis.register_function('multichat_import_begin', import_begin)
  redis.register_function('multichat_import_room', import_room)
  redis.register_function('multichat_import_account', import_account)
  redis.register_function('multichat_import_topic', import_topic)
  redis.register_function('multichat_import_session', import_session)
end
