"""A user's program with every public name; `test_public_types` checks its types."""

import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import assert_never, assert_type

import trio

import multichat
import multichat.testing

# --- A server -------------------------------------------------------------------------------------


async def by_token(request: multichat.AdmissionRequest) -> str | bool | None:
    assert_type(request.address, str)
    return True if request.password is None and not request.encrypted else request.name


async def greet(member: multichat.MemberInfo) -> None:
    print(member.client, member.name, member.room, member.waiting_bytes, member.behind)


def no_shouting(message: multichat.Message) -> multichat.Message | None:
    return None if message.text.isupper() else message


async def no_kitchen(asked: multichat.Filtered) -> multichat.Filtered | None:
    match asked:
        case multichat.Joining(text="kitchen") | multichat.Renaming(text="root"):
            return None
        case multichat.Joining() | multichat.Renaming():
            return asked
    return no_shouting(asked)


authenticate: multichat.Authenticate = by_token
on_join: multichat.OnJoin = greet
censor: multichat.Filter = no_shouting


def configuration() -> multichat.ServerConfig:
    return multichat.ServerConfig(
        slow=multichat.Slow.DROP,
        log_messages=multichat.LogMessages.NONE,
        timeouts=multichat.ServerTimeouts(linger=0.1),
        web=multichat.WebConfig(url="https://chat.example/"),
        filters=(censor,),
        away_seconds=0,
    )


def storage() -> multichat.Journal:
    return multichat.MemoryJournal(max_messages=1000)


def certificates(folder: Path) -> tuple[multichat.ServerTls, ssl.SSLContext]:
    try:
        pair = (
            multichat.server_tls(folder / "chain.pem", folder / "key.pem"),
            multichat.client_tls(folder / "ca.pem"),
        )
    except multichat.BadCertificate as error:
        assert_type(error.reason, str)
        raise
    return assert_type(pair, tuple[multichat.ServerTls, ssl.SSLContext])


async def moderate(server: multichat.Server) -> None:
    receipt = await server.broadcast("The server is restarted at noon.")
    assert_type(receipt, multichat.Receipt)
    print(receipt.delivered, receipt.queued, receipt.lagging, receipt.dropped)
    try:
        await server.tell(7, "hello")
        server.kick(7)
    except multichat.UnknownClient as error:
        assert_type(error.client, int)
    seconds = assert_type(multichat.parse_duration("2h"), int | None)
    until = None if seconds is None else trio.current_time() + seconds
    ban = multichat.Ban(target=multichat.parse_target("192.0.2.0/24"), until=until, reason="spam")
    try:
        server.ban(ban)
        server.keep_bans(Path("bans.txt"))
    except multichat.InvalidBanFile as error:
        print(error.file, error.line, error.reason)
    except multichat.TooManyBans as error:
        print(error.limit)
    except multichat.InvalidBan as error:
        print(error)
    assert_type(server.bans, list[multichat.Ban])
    assert_type(server.settings, multichat.LiveSettings).change_password("another")
    assert_type(server.reloading, multichat.Reloading).add(
        "certificate",
        partial(multichat.server_tls, Path("chain.pem")),
        server.settings.change_certificate,
    )
    try:
        assert_type(await server.reload(), list[str])
    except multichat.ReloadFailed as error:
        print(error.lines)
    assert_type(server.members, list[multichat.MemberInfo])
    statistics = assert_type(server.statistics(), multichat.ServerStatistics)
    print(assert_type(statistics.loop_lag, multichat.Durations), statistics.disconnects["lost"])
    print(assert_type(server.why_not_ready(), str))
    for metric in multichat.ServerCollector(server).collect():
        print(metric)


async def run_server(port: int, unix: Path) -> None:
    try:
        async with trio.open_nursery() as nursery:
            serve = partial(
                multichat.serve,
                port,
                host="127.0.0.1",
                unix=unix,
                config=configuration(),
                journal=storage(),
                authenticate=authenticate,
                on_join=on_join,
            )
            server: multichat.Server = await nursery.start(serve)
            await server.start_bot(answer_pings, name="bot")
            await moderate(server)
            server.shutdown()
    except* multichat.ListenFailed as group:
        print(group.exceptions)
    except* multichat.JournalFailed as group:
        print(group.exceptions)


# --- A client -------------------------------------------------------------------------------------


def describe(event: multichat.Event) -> str:
    match event:
        case multichat.Said() | multichat.Directed():
            return f"{event.time} {event.name}: {event.text}"
        case multichat.Joined() | multichat.Left() | multichat.Renamed():
            return f"{event.client} {event.name}"
        case multichat.Entered() | multichat.Presence():
            return f"{event.members} here"
        case multichat.Disconnected() | multichat.Goodbye():
            return event.reason
        case multichat.Reconnected(resumed=resumed, again=again):
            return f"{resumed} {again}"
        case multichat.Missed(count=count):
            return str(count)
        case multichat.Accepted(nonce=nonce, id=message_id):
            return f"{nonce} {message_id}"
        case multichat.Error() | multichat.Notice():
            return event.text
        case multichat.Members(members=members):
            return names(members)
        case multichat.RoomList(rooms=rooms):
            return sizes(rooms)
        case multichat.HistoryPage():
            return f"{len(event.messages)} {event.more}"
        case multichat.Pong(token=token):
            return token
        case multichat.Welcome(server=server):
            return server
        case multichat.Exited() | multichat.TopicChanged():
            return event.room
        case multichat.LoggedIn() | multichat.LoggedOut():
            return event.name
        case multichat.BanList(bans=bans):
            return ", ".join(f"{ban.what} {ban.seconds} {ban.reason}" for ban in bans)
    assert_never(event)


def names(members: Sequence[multichat.MemberName]) -> str:
    return ", ".join(member.name for member in members)


def sizes(rooms: Sequence[multichat.RoomSize]) -> str:
    return ", ".join(f"{room.room} {room.members}" for room in rooms)


async def answer_pings(chat: multichat.Chat) -> None:
    async for event in chat:
        if isinstance(event, multichat.Directed):
            await chat.direct(event.client, "pong")


async def talk(chat: multichat.Chat) -> list[str]:
    assert_type(await chat.say("hello"), str)
    await chat.act("waves")
    await chat.send("one", "two", "three")
    assert_type(await chat.join("dev"), multichat.Entered | None)
    page = assert_type(await chat.history(10), multichat.HistoryPage)
    text = names(await chat.members()) + sizes(await chat.list_rooms())
    try:
        await chat.rename("alice")
    except multichat.Refused as refused:
        assert_type(refused.code, str)
    print(chat.name, chat.room, chat.rooms, chat.account)
    print(chat.client, chat.connected, chat.unaccepted, chat.goodbye)
    return [text, *map(describe, page.messages), *map(describe, await chat.receive())]


async def moderate_as_operator(chat: multichat.Chat) -> None:
    try:
        await chat.login("alice", "correct horse battery staple")
    except multichat.NotPrivate as error:
        print(error)
    entered = assert_type(await chat.enter("dev", replay=5), multichat.Entered)
    await chat.say("hello", room=entered.room)
    await chat.set_topic("releases", room="dev")
    assert_type(await chat.topic("dev"), str)
    await chat.kick("bob", "spam")
    await chat.ban("192.0.2.1", "1h")
    assert_type(await chat.bans(), list[multichat.BanInfo])
    await chat.unban("192.0.2.1")
    await chat.announce("The server is restarted at noon.")
    print(assert_type(await chat.exit("dev"), multichat.Exited).room)
    welcome = assert_type(chat.welcome, multichat.Welcome | None)
    if welcome is not None and welcome.rooms is not None:
        states: list[multichat.RoomState] = list(welcome.rooms.values())
        print(states[0].topic)
    await chat.logout()


async def run_client(host: str, port: int, path: Path) -> list[str]:
    timeouts = multichat.ClientTimeouts(answer=5)
    try:
        async with multichat.connect(
            host,
            port,
            tls=multichat.client_tls(),
            tls_name=host,
            name="alice",
            room="dev",
            password="secret",
            replay=20,
            reconnect=False,
            wait=True,
            timeouts=timeouts,
        ) as chat:
            return await talk(chat)
    except multichat.ConnectFailed as error:
        print(error.host, error.port, error.reason)
    except (multichat.ConnectionLost, multichat.NoJson) as error:
        print(error)

    async def dial() -> trio.abc.Stream:
        return await multichat.dial(host, port, timeouts=timeouts)

    async with multichat.open_chat(await dial(), name="bob", redial=dial) as chat:
        await talk(chat)
    login = multichat.Credentials("alice", "correct horse battery staple")
    async with multichat.open_chat(await dial(), rooms=["dev", "ops"], login=login) as chat:
        await moderate_as_operator(chat)
    async with multichat.open_chat(await multichat.dial_unix(path), plain=True) as chat:
        return await talk(chat)


# --- A test ---------------------------------------------------------------------------------------


async def ask(client: multichat.testing.ScriptedClient) -> list[str]:
    await client.send("/msg bot ping")
    return [await client.line(), *await client.lines(2)]


async def check_the_bot() -> None:
    async with multichat.testing.memory_server(configuration(), journal=storage()) as network:
        assert_type(network, multichat.testing.MemoryServer)
        async with network.bot(answer_pings, name="bot") as chat:
            assert_type(chat, multichat.Chat)
            assert_type(await network.stalled(), multichat.testing.StalledClient)
            assert await ask(await network.join())


def check() -> None:
    multichat.testing.run_on_mock_clock(check_the_bot)


# --- Errors ---------------------------------------------------------------------------------------


def whose_fault(error: multichat.MultichatError) -> str:
    match error:
        case multichat.LocalProtocolError():
            return "ours"
        case multichat.LineTooLong(limit_bytes=limit) | multichat.TooManyRooms(limit=limit):
            return f"at most {limit}"
        case multichat.NameTaken() | multichat.NameAssigned() | multichat.Banned():
            return error.name
        case multichat.NotDelivered(name=to) | multichat.NobodyThere(to=to):
            return str(to)
        case multichat.DeliveryUnknown(name=to):
            return to
        case multichat.Rejected(messages=count):
            return str(count)
        case multichat.StorageFailed(reason=reason) | multichat.NotRead(reason=reason):
            return reason
        case (
            multichat.EmptyText()
            | multichat.InvalidName()
            | multichat.UnknownRequest()
            | multichat.InvalidRequest()
            | multichat.UnknownId()
        ):
            return "the client's"
        case multichat.RemoteProtocolError():
            return "the other side's"
    return str(error)
