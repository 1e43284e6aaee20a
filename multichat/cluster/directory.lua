-- The directory: everything that nodes share besides the messages of rooms.
--
-- A node changes it with batches: `multichat_change(NODE, RUN, SEQUENCE, SETTINGS, CHANGES)`, the
-- last two packed.  Batches of a run are numbered and made in order: a batch that is repeated after
-- a lost connection gets its first answer, and changes nothing.  The answer has one result for each
-- change: {"ok", …} or {"refused", CODE, …}; "fenced" is the code for a client that has
-- been resumed elsewhere meanwhile.
--
-- What changes is appended to a stream, the feed, as an event [ACTOR, [KIND, …]] with a number, and
-- pushed on a channel.  ACTOR is the node that asked for it, empty for what follows from that for
-- others.
--
-- Invariants:
-- 1. No two clients have names that share a lookalike key; nor a client and an account that is not
--    its own.
-- 2. A client belongs to the run that connected it last; its generation rises with each resume.
-- 3. A run whose lease has ended is never valid again; its clients and rooms are removed once.
-- 4. A room is open while a run holds it.  No more rooms than the limit are open, and no new room
--    shares a lookalike key with one that is open, except those that runs hold by force, and those
--    that a client was about to leave, and somebody else enters meanwhile.
--
-- Functions are atomic, but not transactional: each change validates before it writes.
--
-- Follows sessions.lua in one library, and uses it, and from library.lua: call, now_ms, is_fenced,
-- nonces_key, end_generation, load_nonces, remember_nonces, read_meta.

do
    local PREFIX = 'multichat:'
    local NODES = PREFIX .. 'nodes'              -- node → run
    local RENEWED = PREFIX .. 'renewed'          -- when any node has renewed its lease last
    local RUNS = PREFIX .. 'expired'             -- runs whose clients are still to be removed
    local CLIENTS = PREFIX .. 'clients'          -- number → entry, see `entry_of`
    local GENERATIONS = PREFIX .. 'generations'  -- number → generation, also of those away
    local NUMBERS = PREFIX .. 'clients:ever'     -- the highest number that was given to a node
    local NAMES = PREFIX .. 'names'              -- folded name → {client, name, keys, origin, until}
    local NAME_KEYS = PREFIX .. 'names:keys'     -- lookalike key → folded name
    local AWAY = PREFIX .. 'names:away'          -- folded names of those away, by when they are free
    local LOGINS = PREFIX .. 'logins'            -- account → number
    local ACCOUNTS = PREFIX .. 'accounts'        -- folded name → {name, hash, keys}
    local ACCOUNT_KEYS = PREFIX .. 'accounts:keys'
    local TOPICS = PREFIX .. 'topics'
    local ROOMS = PREFIX .. 'rooms'              -- key of an open room → {name, keys, runs}
    local ROOM_KEYS = PREFIX .. 'rooms:keys'     -- lookalike key → keys of open rooms
    local BANS = PREFIX .. 'bans'                -- target → {number, ban}
    -- id → {from, run, claimed, client, nonce, check, message}, the last for another node
    local DIRECTS = PREFIX .. 'directs'
    local DIRECT_NONCES = PREFIX .. 'directs:nonces'  -- `CLIENT NONCE` → id, of those in `directs`
    local LOG, COUNT = PREFIX .. 'directory:log', PREFIX .. 'directory:count'
    local CHANNEL = PREFIX .. 'directory'

    -- A node that is further behind reads a snapshot.
    local LOG_EVENTS = 10000
    -- At most this many batches of a run are in flight, so no older answer is needed.
    local ANSWERS = 64
    -- In an answer that is kept, for the nonces of a session, which may be 100 KB: a batch that is
    -- repeated gets those that the session has by then.
    local NONCES = false
    -- More client numbers than all nodes give in the seconds that an engine may lose.
    local SKIPPED = 100000
    -- One call removes at most this many clients, sessions or names: about 20 ms.
    local MAX_REMOVED = 500
    -- A client that leaves evicts at most this many sessions: as much as it adds, of the smallest.
    local MAX_PURGED = 100
    -- A run is never valid again; a frozen node asks within a day.
    local FENCED_SECONDS = 86400
    local LOST = 'connection lost'

    -- While the library is loaded there is no `cmsgpack`.
    local function pack(value)
        return cmsgpack.pack(value)
    end

    local function unpacked(value)
        return cmsgpack.unpack(value)
    end

    local function load(key, field)
        local value = call('HGET', key, field)
        return value and unpacked(value) or nil
    end

    local function save(key, field, value)
        call('HSET', key, field, pack(value))
    end

    local function text(number)
        return string.format('%.0f', number)
    end

    -- Append `stored` to the feed, with more fields, and push `pushed`.
    local function append_event(stored, pushed, ...)
        local number = text(call('INCR', COUNT))
        call('XADD', LOG, 'MAXLEN', '~', LOG_EVENTS, number .. '-0', 'e', stored, ...)
        pcall(call, 'PUBLISH', CHANNEL, number .. ' ' .. pushed)  -- a hint: nodes read what they miss
    end

    local function emit(actor, ...)
        local event = pack({actor, {...}})
        append_event(event, event)
    end

    local function clients_of(run)
        return PREFIX .. 'run:' .. run .. ':clients'
    end

    local function rooms_of(run)
        return PREFIX .. 'run:' .. run .. ':rooms'
    end

    local function lease_of(node)
        return PREFIX .. 'lease:' .. node
    end

    local function answer_of(run)
        return PREFIX .. 'run:' .. run .. ':answer'
    end

    local FENCED = {'refused', 'fenced'}

    -- Names ------------------------------------------------------------------------------------

    local function without(list, removed)
        local kept = {}
        for _, each in ipairs(list) do
            if each ~= removed then
                kept[#kept + 1] = each
            end
        end
        return kept
    end

    local function release_name(fold)
        local held = load(NAMES, fold)
        if held then
            for _, key in ipairs(held.keys) do
                if call('HGET', NAME_KEYS, key) == fold then
                    call('HDEL', NAME_KEYS, key)
                end
            end
            call('HDEL', NAMES, fold)
            call('ZREM', AWAY, fold)
        end
    end

    -- Return the folded names of other clients that share one of these keys.
    local function others_with(client, keys)
        local found, seen = {}, {}
        for _, key in ipairs(keys) do
            local fold = call('HGET', NAME_KEYS, key)
            if fold and not seen[fold] then
                seen[fold] = true
                local held = load(NAMES, fold)
                if held and held.client ~= client then
                    found[#found + 1] = {fold, held}
                end
            end
        end
        return found
    end

    -- Return a refusal if these keys are those of another account than `own`.
    local function registered(fold, keys, own)
        for _, key in ipairs(keys) do
            local account = call('HGET', ACCOUNT_KEYS, key)
            if account and account ~= own then
                local other = account == fold and '' or load(ACCOUNTS, account).name
                return {'refused', 'name-taken', other, true}
            end
        end
    end

    local function may_be_taken(held, fold, account, origin, time)
        return held['until'] > 0
            and (held['until'] <= time or held.origin == origin or account == fold)
    end

    -- Return why the client cannot have that name, or nil.
    local function name_refusal(client, fold, keys, account, origin, time)
        local refusal = registered(fold, keys, account)
        if refusal then
            return refusal
        end
        for _, each in ipairs(others_with(client, keys)) do
            if not may_be_taken(each[2], fold, account, origin, time) then
                local other = each[1] == fold and '' or each[2].name
                return {'refused', 'name-taken', other, false}
            end
        end
    end

    -- Give a client a name that it can have; those away who held it lose it.
    local function give_name(entry, client, name, fold, keys, origin)
        for _, each in ipairs(others_with(client, keys)) do
            release_name(each[1])
        end
        save(NAMES, fold, {client = client, name = name, keys = keys, origin = origin, ['until'] = 0})
        call('ZREM', AWAY, fold)
        for _, key in ipairs(keys) do
            call('HSET', NAME_KEYS, key, fold)
        end
        entry.names = without(entry.names, fold)
        entry.names[#entry.names + 1] = fold
    end

    -- Release all names of a client but one, whose keys it may share with them.
    local function keep_name(entry, fold)
        for _, each in ipairs(entry.names) do
            if each ~= fold then
                release_name(each)
            end
        end
        entry.names = {}
        local held = fold ~= '' and load(NAMES, fold)
        if held then
            entry.names = {fold}
            for _, key in ipairs(held.keys) do
                call('HSET', NAME_KEYS, key, fold)
            end
        end
    end

    -- Rooms ------------------------------------------------------------------------------------

    -- Let a run hold a room, whose name stays the one that it was opened with; return that.
    local function hold_room(run, key, name, keys)
        local room = load(ROOMS, key)
        if room == nil then
            room = {name = name, keys = keys, runs = {}}
            for _, each in ipairs(keys) do
                local open = load(ROOM_KEYS, each) or {}
                open[#open + 1] = key
                save(ROOM_KEYS, each, open)
            end
        end
        room.runs = without(room.runs, run)
        room.runs[#room.runs + 1] = run
        save(ROOMS, key, room)
        call('SADD', rooms_of(run), key)
        return room.name
    end

    local function drop_room(run, key)
        call('SREM', rooms_of(run), key)
        local room = load(ROOMS, key)
        if room == nil then
            return
        end
        room.runs = without(room.runs, run)
        if #room.runs > 0 then
            save(ROOMS, key, room)
            return
        end
        call('HDEL', ROOMS, key)
        for _, each in ipairs(room.keys) do
            local open = without(load(ROOM_KEYS, each) or {}, key)
            if #open > 0 then
                save(ROOM_KEYS, each, open)
            else
                call('HDEL', ROOM_KEYS, each)
            end
        end
    end

    -- How many rooms are open, without those of `leaving` that only this run holds.
    local function count_rooms(run, leaving)
        local count = call('HLEN', ROOMS)
        for _, key in ipairs(leaving) do
            local room = load(ROOMS, key)
            if room and #room.runs == 1 and room.runs[1] == run then
                count = count - 1
            end
        end
        return count
    end

    -- Return the name of an open room that shares one of these keys, or nil.
    local function open_lookalike(keys)
        for _, each in ipairs(keys) do
            local open = load(ROOM_KEYS, each)
            if open then
                return load(ROOMS, open[1]).name
            end
        end
    end

    -- Clients ----------------------------------------------------------------------------------

    -- Return the entry of a client that is not fenced, a new one if it has none.  Its record is what
    -- all nodes know of it since the `put` of the generation `told`, 0 for none.
    local function entry_of(context, client, generation)
        local entry = load(CLIENTS, text(client)) or {
            record = {client = client, name = '', account = '', rooms = {}, address = '', origin = ''},
            names = {}, login = '', session = '', told = 0,
        }
        if entry.run ~= context.run then
            if entry.run then
                call('SREM', clients_of(entry.run), text(client))
            end
            call('SADD', clients_of(context.run), text(client))
            entry.node, entry.run = context.node, context.run
        end
        entry.record.generation = generation
        call('HSET', GENERATIONS, text(client), text(generation))
        return entry
    end

    local function is_same(one, other)
        return one.name == other.name and one.account == other.account
            and one.address == other.address and one.origin == other.origin
            and table.concat(one.rooms, '\n') == table.concat(other.rooms, '\n')
    end

    local function release_login(entry, client)
        if entry.login ~= '' and call('HGET', LOGINS, entry.login) == text(client) then
            call('HDEL', LOGINS, entry.login)
        end
        entry.login = ''
    end

    -- Take a name, and a login, away from a client; its node reports what it is called then.
    local function lose(client, fold, name, login)
        local entry = load(CLIENTS, text(client))
        if entry then
            entry.names = without(entry.names, fold)
            if login then
                entry.login = ''
            end
            save(CLIENTS, text(client), entry)
            emit('', 'name-lost', client, entry.record.generation, name, login, entry.node)
        end
    end

    -- Sessions ---------------------------------------------------------------------------------

    -- Remove sessions and names whose time has ended, and sessions above the limits.
    local function purge(settings, time, most)
        sessions.purge(
            settings.session, settings.max_sessions, settings.session_bytes, time, most)
        for _, fold in ipairs(call('ZRANGEBYSCORE', AWAY, '-inf', text(time), 'LIMIT', 0, most)) do
            release_name(fold)
        end
    end

    -- Remove a client that is connected no more; its name is kept for `keep` ms, unless that is
    -- negative.
    local function remove_client(actor, settings, client, entry, reason, keep)
        call('HDEL', CLIENTS, text(client))
        call('SREM', clients_of(entry.run), text(client))
        release_login(entry, client)
        local fold, time = '', now_ms()
        for _, each in ipairs(entry.names) do
            local held = load(NAMES, each)
            if keep >= 0 and held and held.name == entry.record.name then
                fold = each
            end
        end
        keep_name(entry, fold)
        if fold ~= '' then
            local held = load(NAMES, fold)
            held['until'] = time + keep
            save(NAMES, fold, held)
            call('ZADD', AWAY, text(held['until']), fold)
        end
        if not sessions.exists(entry.session) then
            end_generation(text(client))
        elseif not sessions.is_away(entry.session) then  -- nobody has it: it ends in time
            sessions.leave(
                entry.session, sessions.load(entry.session), entry.record.origin, time)
        end
        if entry.told > 0 then
            emit(actor, 'gone', client, entry.record.generation, reason, keep >= 0)
        end
        purge(settings, time, MAX_PURGED)
    end

    -- A client whose node is gone: its session can be resumed.
    local function client_lost(settings, client, entry, reason)
        local keep = sessions.exists(entry.session) and settings.away or -1
        remove_client('', settings, client, entry, reason, keep)
    end

    -- The changes ------------------------------------------------------------------------------

    local changes = {}

    -- A block of client numbers; `floor` is the highest number that the node knows.  If that was never
    -- given, the engine has lost data: then a part of the numbers is skipped, as others may have
    -- been given that this node does not know.
    function changes.numbers(context, count, floor)
        if tonumber(call('GET', NUMBERS) or '0') < floor then
            call('SET', NUMBERS, text(floor + SKIPPED))
        end
        return {'ok', call('INCRBY', NUMBERS, count) - count + 1}
    end

    -- A name for a client, and with `login` the account of that name.
    function changes.claim(context, client, generation, name, fold, keys, account, login, origin)
        if is_fenced(client, generation) then
            return FENCED
        end
        if login then
            if call('HEXISTS', ACCOUNTS, fold) == 0 then
                return {'refused', 'name-taken', '', false}
            end
            local refusal = registered(fold, keys, fold)
            if refusal then
                return refusal
            end
            local holder = tonumber(call('HGET', LOGINS, fold) or '0')
            local others = others_with(client, keys)
            for _, each in ipairs(others) do
                release_name(each[1])
                if each[2]['until'] == 0 and each[2].client ~= holder then
                    lose(each[2].client, each[1], each[2].name, false)
                end
            end
            if holder ~= 0 and holder ~= client then
                local lost = ''
                for _, each in ipairs(others) do
                    lost = each[2].client == holder and each[1] or lost
                end
                lose(holder, lost, name, true)
            end
        else
            local holder = account ~= '' and call('HGET', LOGINS, account)
            if holder and holder ~= text(client) then
                return {'refused', 'name-taken', '', true}
            end
            local refusal = name_refusal(client, fold, keys, account, origin, context.time)
            if refusal then
                return refusal
            end
        end
        local entry = entry_of(context, client, generation)
        give_name(entry, client, name, fold, keys, origin)
        if login then
            if entry.login ~= fold then
                release_login(entry, client)
            end
            call('HSET', LOGINS, fold, text(client))
            entry.login = fold
        end
        save(CLIENTS, text(client), entry)
        return {'ok'}
    end

    -- The present state of a client; it gives back the names and the login that are not in it.
    function changes.put(context, record, fold, keys)
        local client, generation = record.client, record.generation
        if is_fenced(client, generation) then
            return FENCED
        end
        local entry = entry_of(context, client, generation)
        local account = record.account
        if entry.login ~= account then
            release_login(entry, client)
            if account ~= '' then
                local is_free = call('HEXISTS', ACCOUNTS, account) == 1
                    and call('HSETNX', LOGINS, account, text(client)) == 1
                if is_free or call('HGET', LOGINS, account) == text(client) then
                    entry.login = account
                else
                    record.account = ''
                    emit('', 'name-lost', client, generation, account, true, context.node)
                end
            end
        end
        if record.name ~= '' then
            local held = load(NAMES, fold)
            if held == nil or held.client ~= client or held['until'] > 0 then
                if name_refusal(client, fold, keys, record.account, record.origin, context.time) then
                    emit('', 'name-lost', client, generation, record.name, false, context.node)
                    record.name, fold = '', ''
                else
                    give_name(entry, client, record.name, fold, keys, record.origin)
                end
            elseif held.name ~= record.name then  -- in another case
                held.name = record.name
                save(NAMES, fold, held)
            end
        end
        keep_name(entry, fold)
        local is_known = entry.told == generation and is_same(entry.record, record)
        entry.record, entry.told = record, generation
        save(CLIENTS, text(client), entry)
        if not is_known then
            emit(context.node, 'put', record)
        end
        return {'ok'}
    end

    -- A client has disconnected; its name is kept for `keep` ms, unless that is negative.
    function changes.gone(context, client, generation, reason, keep)
        if is_fenced(client, generation) then
            return FENCED
        end
        local entry = load(CLIENTS, text(client))
        if entry then
            remove_client(context.node, context.settings, client, entry, reason, keep)
        end
        return {'ok'}
    end

    changes['save-session'] = function(context, digest, client, generation, record, connected)
        if is_fenced(client, generation) then
            return FENCED
        end
        local session = {client = client, generation = generation, record = record, origin = ''}
        local entry = load(CLIENTS, text(client))
        if entry and entry.ended then  -- its node does not know it yet
            return {'ok'}
        end
        call('HSET', GENERATIONS, text(client), text(generation))
        if connected then
            sessions.keep(digest, session)
        else
            sessions.leave(digest, session, entry and entry.record.origin or '', context.time)
        end
        if connected then
            entry = entry_of(context, client, generation)
        end
        if entry then
            entry.session = digest
            save(CLIENTS, text(client), entry)
        end
        return {'ok'}
    end

    function changes.session(context, digest)
        local session, age = sessions.find(digest, context.settings.session, context.time)
        if session == nil then
            return {'refused', 'unknown-session'}
        end
        return {'ok', session.client, session.generation, session.record, NONCES, age}
    end

    -- Resume a session here, if it has that generation: the next one fences who had it.
    changes['take-session'] = function(context, digest, generation)
        local session = sessions.find(digest, context.settings.session, context.time)
        if session == nil or session.generation ~= generation then
            return {'refused', 'unknown-session'}
        end
        local client = session.client
        local newest = tonumber(call('HGET', GENERATIONS, text(client)) or '0')
        session.generation = math.max(newest, generation) + 1
        local before = load(CLIENTS, text(client))
        local entry = entry_of(context, client, session.generation)
        entry.session = digest
        if entry.record.origin == '' then  -- of the client that had it, until this one has its own
            entry.record.origin = session.origin
        end
        save(CLIENTS, text(client), entry)
        sessions.keep(digest, session)
        emit(context.node, 'taken', client, session.generation - 1, before and before.node or '')
        return {'ok', client, session.generation, session.record, NONCES}
    end

    changes['forget-session'] = function(context, digest, client, generation)
        if is_fenced(client, generation) then
            return FENCED
        end
        sessions.finish(digest)
        return {'ok'}
    end

    -- Remove the clients of this node that are not listed, after a reconnect.
    function changes.retain(context, clients)
        local wanted = {}
        for _, client in ipairs(clients) do
            wanted[text(client)] = true
        end
        for _, client in ipairs(call('SMEMBERS', clients_of(context.run))) do
            local entry = not wanted[client] and load(CLIENTS, client)
            if entry then
                client_lost(context.settings, tonumber(client), entry, LOST)
            end
        end
        return {'ok'}
    end

    -- A room that this node is about to open; `leaving` are rooms that it closes then.  At most
    -- `most` are open.  A name that is not `valid` is only that of a room with messages; such a
    -- room may look like another, because its members would be locked out otherwise.
    changes['claim-room'] = function(context, key, name, keys, leaving, most, valid)
        local has_messages = read_meta(key).next > 0
        if not (valid or has_messages) then
            return {'refused', 'invalid-name'}
        end
        if call('HEXISTS', ROOMS, key) == 0 then
            if count_rooms(context.run, leaving) >= most then
                return {'refused', 'too-many-rooms'}
            end
            local other = not has_messages and open_lookalike(keys)
            if other then
                return {'refused', 'looks-like', other}
            end
        end
        return {'ok', hold_room(context.run, key, name, keys)}
    end

    -- A room that is open here, whatever else is open: nobody can be sent out of it.
    changes['hold-room'] = function(context, key, name, keys)
        return {'ok', hold_room(context.run, key, name, keys)}
    end

    changes['drop-room'] = function(context, key)
        drop_room(context.run, key)
        return {'ok'}
    end

    -- This node has these rooms open, each {key, name, keys}, and no others.
    changes['retain-rooms'] = function(context, rooms)
        local wanted = {}
        for _, room in ipairs(rooms) do
            wanted[room[1]] = true
        end
        for _, key in ipairs(call('SMEMBERS', rooms_of(context.run))) do
            if not wanted[key] then
                drop_room(context.run, key)
            end
        end
        for _, room in ipairs(rooms) do
            hold_room(context.run, unpack(room))
        end
        return {'ok'}
    end

    -- Store an account in place of the one with the hash `former`, empty if it is new; remove it
    -- without a `name`.
    function changes.account(context, fold, name, hash, keys, former, most)
        local account = load(ACCOUNTS, fold)
        if (account and account.hash or '') ~= former or (name == '' and not account) then
            return {'refused', 'name-taken', '', account ~= nil}
        end
        if name == '' then
            call('HDEL', ACCOUNTS, fold)
            for _, key in ipairs(account.keys) do
                if call('HGET', ACCOUNT_KEYS, key) == fold then
                    call('HDEL', ACCOUNT_KEYS, key)
                end
            end
            local holder = call('HGET', LOGINS, fold)
            if holder then
                call('HDEL', LOGINS, fold)
                local entry = load(CLIENTS, holder)
                if entry then
                    entry.login = ''
                    save(CLIENTS, holder, entry)
                end
            end
        else
            if account == nil then
                local refusal = registered(fold, keys, '')
                if refusal then
                    return refusal
                end
                if call('HLEN', ACCOUNTS) >= most then
                    return {'refused', 'too-many-accounts'}
                end
            end
            save(ACCOUNTS, fold, {name = name, hash = hash, keys = keys})
            for _, key in ipairs(keys) do
                call('HSET', ACCOUNT_KEYS, key, fold)
            end
        end
        emit(context.node, 'account', fold, name, hash)
        return {'ok'}
    end

    function changes.topic(context, key, topic, client, name, most)
        if topic == '' then
            call('HDEL', TOPICS, key)
        else
            if call('HEXISTS', TOPICS, key) == 0 and call('HLEN', TOPICS) >= most then
                return {'refused', 'too-many-topics'}
            end
            call('HSET', TOPICS, key, topic)
        end
        emit(context.node, 'topic', key, topic, client, name)
        return {'ok'}
    end

    -- Forget the bans that have ended; each node knows that by itself.
    local function purge_bans(time)
        local bans = call('HGETALL', BANS)
        for index = 1, #bans, 2 do
            local ends = unpacked(bans[index + 1])[2]['until']
            if ends and ends * 1000 <= time then
                call('HDEL', BANS, bans[index])
            end
        end
    end

    function changes.ban(context, ban, most)
        if call('HEXISTS', BANS, ban.target) == 0 and call('HLEN', BANS) >= most then
            purge_bans(context.time)
            if call('HLEN', BANS) >= most then
                return {'refused', 'too-many-bans'}
            end
        end
        save(BANS, ban.target, {call('INCR', BANS .. ':count'), ban})
        emit(context.node, 'banned', ban)
        return {'ok'}
    end

    function changes.unban(context, target)
        if call('HDEL', BANS, target) == 0 then
            return {'refused', 'not-banned'}
        end
        emit(context.node, 'unbanned', target)
        return {'ok'}
    end

    -- Disconnect a client on whichever node it is; if it may not return, its session ends now, and is
    -- not stored again.  So does that of a client which has just lost its connection.  A node that
    -- reads a snapshot instead of the event finds `ended` in the entry.
    function changes.disconnect(context, client, code, reason, returns)
        local entry = load(CLIENTS, text(client))
        if entry == nil then
            local digest = not returns and sessions.away_of(text(client))
            if digest then
                sessions.finish(digest)
                return {'ok'}
            end
            return {'refused', 'unknown-client'}
        end
        if not returns then
            sessions.finish(entry.session)
            entry.ended = {code, reason}
            save(CLIENTS, text(client), entry)
        end
        emit(context.node, 'disconnect', client, entry.node, code, reason)
        return {'ok'}
    end

    function changes.announce(context, announcement)
        emit(context.node, 'announced', announcement)
        return {'ok'}
    end

    -- Private messages: the recipient's node claims one, delivers it, and says how that went.
    --
    -- While one is under way its nonce leads to it, so that its sender, who has resumed on another
    -- node and sends it again, waits for the same message.  Afterwards the nonce is among those of
    -- the client's other messages, with 0 for its number, or 1 if it may have been delivered; it is
    -- not if the message was certainly not delivered: then it may be sent again.

    local function nonce_of(client, nonce)
        return text(client) .. ' ' .. nonce
    end

    local function settle_direct(settings, id, direct, fate)
        if direct.nonce ~= '' then
            if fate ~= 'not-delivered' then
                local value = direct.check .. (fate == 'delivered' and ' - 0 ' or ' - 1 ')
                remember_nonces(text(direct.client), {direct.nonce}, {value}, settings.nonces)
            end
            call('HDEL', DIRECT_NONCES, nonce_of(direct.client, direct.nonce))
        end
        call('HDEL', DIRECTS, id)
    end

    local function finish_direct(settings, id, direct, fate)
        settle_direct(settings, id, direct, fate)
        emit('', 'direct-done', id, direct.from, fate)
    end

    -- The feed has no texts of private messages, which could fill the engine's memory: they are pushed,
    -- and are in `directs` until they are settled.
    local function emit_direct(actor, id, to, node, message)
        local function event(text_)
            return pack({actor, {'direct', id, to, node, text_}})
        end
        append_event(event(''), event(message), 'direct', id)
    end

    -- Return an event of the feed as it was pushed, if it is not that of a message that is settled.
    local function pushed_event(fields)
        local direct = fields[4] and load(DIRECTS, fields[4])
        if not (direct and direct.message) then
            return fields[2]
        end
        local event = unpacked(fields[2])
        event[2][5] = direct.message
        return pack(event)
    end

    -- What is known of a nonce whose message is not under way: nothing if it is new.
    local function known_direct(client, nonce, check)
        local value = call('HGET', nonces_key(text(client)), nonce)
        if value then
            local known, epoch, number = value:match('^(%S+) (%S+) (%d+)')
            if epoch ~= '-' or (known ~= '-' and known ~= check) then
                return {'refused', 'nonce-reused'}
            end
            return {'refused', number == '1' and 'unknown' or 'delivered'}
        end
    end

    function changes.direct(context, id, to, message, client, generation, nonce, check)
        if is_fenced(client, generation) then
            return FENCED
        end
        if nonce ~= '' then
            local first = call('HGET', DIRECT_NONCES, nonce_of(client, nonce))
            local direct = first and load(DIRECTS, first)
            if direct then
                if direct.check ~= check then
                    return {'refused', 'nonce-reused'}
                end
                direct.from = context.node
                save(DIRECTS, first, direct)
                return {'ok', first, false}
            end
            local known = known_direct(client, nonce, check)
            if known then
                return known
            end
        end
        local entry = load(CLIENTS, text(to))
        if entry == nil then
            return {'refused', 'unknown-client'}
        end
        local is_here = entry.run == context.run
        save(DIRECTS, id, {
            from = context.node, run = entry.run, claimed = is_here,
            client = client, nonce = nonce, check = check, message = not is_here and message or nil,
        })
        if nonce ~= '' then
            call('HSET', DIRECT_NONCES, nonce_of(client, nonce), id)
        end
        if not is_here then
            emit_direct(context.node, id, to, entry.node, message)
        end
        return {'ok', id, is_here}
    end

    changes['claim-direct'] = function(context, id)
        local direct = load(DIRECTS, id)
        if direct == nil or direct.run ~= context.run or direct.claimed then
            return {'refused', 'withdrawn'}
        end
        direct.claimed = true
        save(DIRECTS, id, direct)
        return {'ok'}
    end

    changes['finish-direct'] = function(context, id, delivered)
        local direct = load(DIRECTS, id)
        if direct and direct.run == context.run then
            finish_direct(
                context.settings, id, direct, delivered and 'delivered' or 'not-delivered')
        end
        return {'ok'}
    end

    -- The sender waits no longer: it is not delivered, unless it is claimed already.
    changes['withdraw-direct'] = function(context, id)
        local direct = load(DIRECTS, id)
        if direct == nil then
            return {'refused', 'settled'}
        end
        if direct.claimed or direct.from ~= context.node then
            return {'refused', 'claimed'}
        end
        settle_direct(context.settings, id, direct, 'not-delivered')
        return {'ok'}
    end

    -- Nodes ------------------------------------------------------------------------------------

    -- End a run; the actor is its node if that leaves in order, otherwise nobody.  What it has
    -- claimed may have been delivered.
    local function expire(actor, node, run, settings)
        call('HDEL', NODES, node)
        call('SET', PREFIX .. 'fenced:' .. run, 1, 'EX', FENCED_SECONDS)
        call('SADD', RUNS, run)
        call('DEL', answer_of(run))
        emit(actor, 'node-lost', node)
        local directs = call('HGETALL', DIRECTS)
        for index = 1, #directs, 2 do
            local direct = unpacked(directs[index + 1])
            if direct.run == run then
                finish_direct(
                    settings, directs[index], direct,
                    direct.claimed and 'unknown' or 'not-delivered')
            end
        end
    end

    -- Remove clients, and then rooms, of expired runs; return whether any are left.
    local function sweep(settings, most, reason)
        for _, run in ipairs(call('SMEMBERS', RUNS)) do
            while most > 0 do
                local client = call('SPOP', clients_of(run))
                local room = not client and call('SPOP', rooms_of(run))
                if not (client or room) then
                    call('SREM', RUNS, run)
                    break
                end
                local entry = client and load(CLIENTS, client)
                if entry and entry.run == run then
                    client_lost(settings, tonumber(client), entry, reason)
                elseif room then
                    drop_room(run, room)
                end
                most = most - 1
            end
        end
        return call('SCARD', RUNS) > 0
    end

    -- Return an error unless that run of the node is valid.
    local function invalid(node, run)
        if call('HGET', NODES, node) == run then
            return nil
        end
        if call('EXISTS', PREFIX .. 'fenced:' .. run) == 1 or call('HEXISTS', NODES, node) == 1 then
            return redis.error_reply('FENCED the lease of this node has ended')
        end
        return redis.error_reply('UNREGISTERED the engine does not know this node')
    end

    -- Leases, leaving and what removes the old also work above the engine's `maxmemory`.

    -- NODE RUN SETTINGS LAST: a node starts, or joins again; returns the number of the last event.
    -- LAST is the number of its last batch that was answered: the engine may have lost that.
    redis.register_function{
        function_name = 'multichat_join',
        callback = function(keys, args)
            local node, run, settings = args[1], args[2], unpacked(args[3])
            if call('EXISTS', PREFIX .. 'fenced:' .. run) == 1 then
                return redis.error_reply('FENCED the lease of this node has ended')
            end
            local known = call('HGET', NODES, node)
            if known and known ~= run then
                if call('EXISTS', lease_of(node)) == 1 then
                    return redis.error_reply('INUSE another node runs under this name')
                end
                expire('', node, known, settings)
            end
            call('HSET', NODES, node, run)
            call('SET', lease_of(node), run, 'PX', settings.lease)
            call('SET', RENEWED, text(now_ms()))
            if tonumber(call('HGET', answer_of(run), 'last') or '0') < tonumber(args[4]) then
                call('HSET', answer_of(run), 'last', args[4])
            end
            if not known or known ~= run then
                emit(node, 'node-joined', node)
            end
            return tonumber(call('GET', COUNT) or '0')
        end,
        flags = {'allow-oom'},
    }

    -- NODE RUN SETTINGS: renews the lease, and removes the clients of nodes whose lease has ended.
    -- Returns the number of the last event, and 1 if it is to be called again at once.
    redis.register_function{
        function_name = 'multichat_renew',
        callback = function(keys, args)
            local node, run, settings = args[1], args[2], unpacked(args[3])
            local problem = invalid(node, run)
            if problem then
                return problem
            end
            call('SET', lease_of(node), run, 'PX', settings.lease)
            -- If no node at all has renewed its lease for long, it was the engine that was away, and
            -- the others get as much time as this one had.
            local before = tonumber(call('GET', RENEWED) or '0')
            local was_away = now_ms() - before >= settings.lease / 2
            call('SET', RENEWED, text(now_ms()))
            local nodes = call('HGETALL', NODES)
            for index = 1, #nodes, 2 do
                if call('EXISTS', lease_of(nodes[index])) == 0 then
                    if was_away then
                        call('SET', lease_of(nodes[index]), nodes[index + 1], 'PX', settings.lease)
                    else
                        expire('', nodes[index], nodes[index + 1], settings)
                    end
                end
            end
            local again = sweep(settings, MAX_REMOVED, LOST)
            purge(settings, now_ms(), MAX_REMOVED)
            return {tonumber(call('GET', COUNT) or '0'), again and 1 or 0}
        end,
        flags = {'allow-oom'},
    }

    -- NODE RUN SETTINGS REASON: the node ends in order; its clients may resume elsewhere.
    redis.register_function{
        function_name = 'multichat_end_node',
        callback = function(keys, args)
            local node, run, settings = args[1], args[2], unpacked(args[3])
            if call('HGET', NODES, node) == run then
                expire(node, node, run, settings)
                call('DEL', lease_of(node))
            end
            return sweep(settings, MAX_REMOVED, args[4]) and 1 or 0
        end,
        flags = {'allow-oom'},
    }

    -- Whether a change frees memory, or takes none that matters.
    local function is_relief(kind, digest, _, _, _, connected)
        if kind == 'save-session' then
            return not connected and sessions.exists(digest)
        end
        return kind == 'gone' or kind == 'forget-session' or kind == 'retain' or kind == 'unban'
            or kind == 'disconnect' or kind == 'finish-direct' or kind == 'withdraw-direct'
            or kind == 'drop-room'
    end

    -- The reply with *results*, in which `NONCES` stands for those of a client.
    local function reply_of(count, results)
        for _, result in ipairs(results) do
            if result[1] == 'ok' and result[5] == NONCES then
                result[5] = load_nonces(text(result[2]))
            end
        end
        return {count, pack(results)}
    end

    local function change_all(args, is_full)
        local node, run, sequence = args[1], args[2], tonumber(args[3])
        local problem = invalid(node, run)
        if problem then
            return problem
        end
        local last = tonumber(call('HGET', answer_of(run), 'last') or '0')
        if sequence <= last then
            local answer = call('HGET', answer_of(run), text(sequence))
            if not answer then
                return redis.error_reply('FORGOTTEN an old answer')
            end
            return reply_of(unpack(unpacked(answer)))
        elseif sequence > last + 1 then
            return redis.error_reply('ORDER the batches before this one were refused')
        end
        local context = {
            node = node, run = run, settings = unpacked(args[4]), time = now_ms(),
        }
        local results = {}
        for index, change in ipairs(unpacked(args[5])) do
            local apply = changes[change[1]]
            local done, result
            if is_full and not is_relief(unpack(change)) then
                done, result = true, {'refused', 'error', 'OOM the memory is full'}
            elseif apply then
                done, result = pcall(apply, context, unpack(change, 2))
            end
            if not done then
                local why = type(result) == 'table' and result.err or tostring(result)
                result = {'refused', 'error', apply and why or 'unknown change'}
            end
            results[index] = result
        end
        local count = tonumber(call('GET', COUNT) or '0')
        local answer = pack({count, results})
        call('HSET', answer_of(run), 'last', text(sequence), text(sequence), answer)
        call('HDEL', answer_of(run), text(sequence - ANSWERS))
        return reply_of(count, results)
    end

    -- NODE RUN SEQUENCE SETTINGS CHANGES: see above.  Returns the number of the last event and the
    -- packed results.
    redis.register_function('multichat_change', function(keys, args)
        return change_all(args, false)
    end)

    -- The same for a batch that was refused because the memory is full: it makes what frees memory,
    -- and refuses the rest.
    redis.register_function{
        function_name = 'multichat_relieve',
        callback = function(keys, args)
            return change_all(args, true)
        end,
        flags = {'allow-oom'},
    }

    -- Everything that a replica holds, and the number of the last event in it.
    redis.register_function{
        function_name = 'multichat_snapshot',
        callback = function(keys, args)
            return {
                tonumber(call('GET', COUNT) or '0'), call('HGETALL', CLIENTS),
                call('HGETALL', ACCOUNTS), call('HGETALL', TOPICS), call('HGETALL', BANS),
            }
        end,
        flags = {'no-writes'},
    }

    -- AFTER COUNT: the events after that number, each with its number: {NUMBER, EVENT, …}; an error
    -- if some of them are kept no longer.
    redis.register_function{
        function_name = 'multichat_events',
        callback = function(keys, args)
            local after = tonumber(args[1])
            local found = call('XRANGE', LOG, '(' .. args[1] .. '-0', '+', 'COUNT', args[2])
            local last = tonumber(call('GET', COUNT) or '0')
            local events = {}
            for index, entry in ipairs(found) do
                local number = tonumber(string.match(entry[1], '^%d+'))
                if number ~= after + index then
                    return redis.error_reply('GAP these events are kept no longer')
                end
                events[#events + 1] = number
                events[#events + 1] = pushed_event(entry[2])
            end
            if last < after or (last > after and #found == 0) then
                return redis.error_reply('GAP these events are kept no longer')
            end
            return events
        end,
        flags = {'no-writes'},
    }
end
