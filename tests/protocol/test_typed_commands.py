"""Commands that people type: which lines are commands, look like one, and habits of other chats."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.commands import COMMANDS
from multichat.protocol.framing import clean
from multichat.protocol.messages import Ban, Direct, Invalid, Kick, Request, Say, SayBlock
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import (
    disguised_command,
    masked,
    may_be_disguised,
    parse_line,
    say_literally,
    say_unless_command,
    without_slash,
)
from multichat.testing import memory_server

pytestmark = pytest.mark.unit

NOT_SAID = "[Server] not sent, because it looks like /msg: type /msg to run it, //msg to say it"

DISGUISES = [
    " /msg",
    "\t/msg",
    "   /MSG",
    "\u00a0/msg",  # no-break space
    "\u3000/msg",  # ideographic space
    "\u200b/msg",  # zero-width space
    "\u2060\u200d/msg",
    "\u00ad/msg",  # soft hyphen
    "\u200e/msg",  # left-to-right mark
    "\u3164/msg",  # Hangul filler
    "\u2800/msg",  # blank Braille pattern
    "\ufe0f/msg",
    "\U000e0020/msg",
    "\ufffd/msg",  # a byte that is not UTF-8
    "␛[D/msg",  # an arrow key in front of nc
    "␛[1;5C ␛OA/msg",
    "␀/msg",
    "\\msg",
    "／msg",
    "⁄msg",
    "∕msg",
    "╱msg",
    "⧸msg",
    "＼msg",
    " / msg",
    "／ｍｓｇ",
    " /w",
    "\u200b／tell",
    "/msg".rjust(400),
    "␛[D" * 30 + "/msg",  # arrow keys
    "helo␛[D␛[C" * 30 + "/msg",
    "␛OP/msg",  # F1
    "␛[[A/msg",  # F1 on the console of Linux
    "␛[15~/msg",
    "␛[200~/msg",  # a bracketed paste
    "␛x/msg",
    "␛/msg",
    "x␡/msg",  # a letter and Backspace
    "xyz␈␈␈/msg",
    "some words␕/msg",  # Ctrl+U
    "word␗ /msg",  # Ctrl+W
    " /msg:",
    " /msg,",
    " /msg.",
    " /msg;",
    " /ms\u200bg",
    " /\u2060msg",
    " /m\u0301sg",
    " /msg\u200b",
    " /msg␛[C",
    "\t/Msg",
    *(f"{blank}/msg" for blank in "\U0001d159\U00013430\U0001bca0\U000110bd\U00016fe4\U0001cf00"),
    *(f"{blank}/msg" for blank in "\u0301\u302a\u0903\ue000\uffa0\u115f\u2029"),
    *(f"{slash}msg" for slash in "ノﾉ丿⼃\U0001d23a﹨∖⟍⧹㇔丶⼂\U0001d20f╲⫽⧵\U0001d23b᜵⁁Ⳇ〳㇓⟋"),
    " ノmsg",
    " \\msg",
    "\\ msg",
]

# Behind a blank, a slash and a word look like a command, whether or not there is one.
UNKNOWN = [
    " /signin bob pw",
    " /enrol pw",
    " /identify pw",
    " /ns identify pw",
    " /pass hunter2",
    " /oper a pw",
    " /dm bob x",
    " /pm bob x",
    "\u200b/signin bob pw",
    "␛[A/signin bob pw",
    "x␡/signin bob pw",
    " /signin: bob pw",
    " /signin,bob pw",
    " /signin@bob pw",
    " /signin-bob pw",
    " /sign\u200bin bob pw",
    " /message",
    " /m\u0455g bob secret",  # a Cyrillic letter
    " /msgs bob secret",
    " /msgbob secret",
    " /msg-bob secret",
    " /msg.bob secret",
    " /логин пароль",
    " /pass",
]

ORDINARY = (
    """
https://example.org/a/b?c=d#e
  https://example.org/
(https://example.org/msg)
<https://example.org/quit>
see http://localhost:8080/help
www.example.org/me
//example.org/script.js
 //example.org/script.js
ftp://ftp.example.org/pub/
file:///etc/passwd
mailto:bob@example.org
 /usr/bin/x
 /usr/bin/python3 is broken
 /etc/passwd
  /etc/init.d/ssh restart
 /tmp/
 /home/alice/.ssh/id_ed25519
 /dev/null
\t/opt/x/bin/y --help
./configure && make
../up/and/away
~/msg bob
~/.config/multichat
C:\\Users\\bob
C:/Windows/System32
\\\\server\\share
 \\\\server\\share
a/b
and/or
either/msg or
he/him
she/her
n/a
w/o sugar
w/ milk
c/o the office
24/7
1/2
 1/2 cup of milk
½ / ⅓
27/11/2026
11/27
2026/11/27 21:45
9/10 would chat again
3 / 4 = 0.75
  / 2 = 4
/ 2
 /2
 /100
 /24 is a small network
10.0.0.0/8
192.168.0.0/16 and fe80::/10
:/
 :/
:-/
:\\
:-\\
=/
>:/
:/ me too
:/ quit asking
¯\\_(ツ)_/¯
 ¯\\_(ツ)_/¯
\\o/
 \\o/
/o\\ no
 /o\\
 _/\\_
(╯°□°)╯︵ ┻━┻
٩(◕‿◕)۶ /msg
> /x
> /msg bob hi
>> /quit
> > /me waves
- /x
- /msg WHO TEXT: tell one person
* /help: this list
+ /who
1. /name
1) /join kitchen
# /help
## /msg
| /msg | private |
`/msg` is for private messages
'/msg' is for private messages
"/msg bob" is what I typed
"/usr/bin"
(/msg is private)
[/help]
{/help}
…/msg
-/msg
→ /msg
· /who
• /who
—/quit
1: /me waves
see /msg bob
type /help
use //msg
no: /msg
✓ /who
🙂 /who
❤️ /who
👨‍👩‍👧 /me
 //
//
 // comment
  // TODO: comment
\t// comment
 ///
 /// docs
 /
/
 / x
 /* comment
 /* comment */
  /** docs */
 */
 * /msg
 /=
 x /= 2
 /- a
 /_x
 /?
 /!
 /, /
 /.
 /..
 /%s/
 /$HOME/bin
 /{id}/x
 /<name>
 /users/{id}
 /users/:id
 /api/v1/msg
 /msg/5
 /who/am/i
 /r/python
 /u/bob
 /m/
 /w/
 /me/
 /msg{}
 /join(a, b)
 /quit=1
 /name=bob&x=y
 /foo|bar/
 /foo.*bar/i
 /ab+c/
 /[a-z]+/g
 /(a|b)/
 /^a/
 /^abc$/
 /\\d+/
 /\\w+@\\w+/.test(x)
s/a/b/
 s/msg/quit/g
y/abc/xyz/
^/msg$
\\d+
\\w+
\\w+ matches a word
\\w* also
\\w{3}
\\w,
\\n\\r\\t
\\s+\\w
\\b
\\x41
\\u00e9
\\(
\\[x\\]
\\part{One}
\\name{x}
\\frac{1}{2}
\\alpha + \\beta
 \\alpha
\\textbf{me}
$\\sum_i$
\\* not a list
for x in a/b:
    return a / b
    a //= 2
  grep -r x /usr
$ ls /tmp
$ /usr/bin/x
% /msg
# ls /
if (a / b > c) {
a = b /c
<br/>
</msg>
 </div>
<a href="/help">
#!/bin/sh
@bob/alice
{"type":"say","text":"/msg"}
你好
 你好 / 世界
丶
丿丶一
丶点
丶 一点
丿部
一丿
丶me你
ノート
ノ
のノ
ノ木
ノルマ /msg
ﾉﾉ
ノwww
ノシ
(´・ω・)ノ
ヽ(´ー`)ノ
ヽ(´ー`)ノ msg
〳〵
いろ〳〵
こんにちは／さようなら
 はい／いいえ
／
／／
／人◕ ‿‿ ◕人＼
＼(^o^)／
＼(^o^)／ quit
￥/msg
￥100
￦/msg
はい/いいえ
日本語のパス /usr/bin
안녕 /하세요
привет /msg
и/или
мама/папа
ελληνικά /who
مرحبا /msg
שלום /msg
हाँ/नहीं
╲╱╲╱
╱╲
⟋⟍
∖ is set difference
A ∖ B
∕
1∕2
1⁄2
text ␛[D/msgs/x
red ␛[31m/usr/bin/x␛[0m
␛[1m/usr/include/x.h:3␛[0m: error
␛[0m
␛
␛[D
x␡
back␈␈/slashes/
    """.replace("\\\\", "\\").strip("\n").split("\n")
)  # fmt: skip


@pytest.mark.parametrize("disguise", DISGUISES, ids=ascii)
async def test_a_disguised_command_is_answered_and_not_sent(disguise: str) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("before", f"{disguise} bob a secret", "behind", "/quit")
        [answer, _] = await a.rest()
        assert answer.startswith("[Server] not sent, because it looks like /")
        assert await b.lines(2) == ["[Client 1] before", "[Client 1] behind"]
        assert TEXT.encode_request(Say(f"{disguise} x")) == f"/say {disguise} x"
        assert disguised_command(f"{disguise} bob x") in ("/msg bob x", "/w bob x", "/tell bob x")


@pytest.mark.parametrize("line", UNKNOWN, ids=ascii)
async def test_a_disguised_unknown_command_is_answered_and_not_sent(line: str) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("before", line, f"/say {line}", "/quit")
        [answer, _] = await a.rest()
        assert answer.startswith("[Server] not sent, because it looks like a command, and there is")
        assert await b.lines(2) == ["[Client 1] before", f"[Client 1] {line}"]


async def test_the_answer_to_an_unknown_command_says_how_to_send_it_as_text() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send(" /tmp is full", "//tmp is full")
        assert await a.line() == (
            "[Server] not sent, because it looks like a command, and there is no /tmp: "
            "type //tmp to say it"
        )
        assert await b.line() == "[Client 1] /tmp is full"
        await a.send(f" /{'a' * 1000}")
        assert len(await a.line()) < 200


async def test_ordinary_lines_are_messages() -> None:
    assert len(ORDINARY) >= 200
    lines = [line for line in ORDINARY if line[0] != "/" or line[1:2] == "/"]
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send(*lines)
        for line in lines:
            assert await b.line() == f"[Client 1] {line.replace('//', '/', line[:1] == '/')}"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (" /msg: bob secret", "/msg bob secret"),
        (" /msg,bob secret", "/msg bob secret"),
        (" /msg@bob secret", "/msg bob secret"),
        (" /join#kitchen", "/join kitchen"),
        (" /quit.", "/quit"),
        ("␛[A /WHO", "/who"),
    ],
)
def test_punctuation_after_the_name_of_a_command_is_ignored(line: str, command: str) -> None:
    assert disguised_command(line) == command


async def test_a_byte_order_mark_does_not_make_a_command_a_message() -> None:
    assert disguised_command("\ufeff/msg bob x") == "/msg bob x"
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        for number, stream in ((1, a), (3, await network.join())):
            await stream.send("\ufeff/msg bob a secret", "\ufeff/msg bob a secret", "said")
            assert await b.line() == f"[Client {number}] said"


@pytest.mark.parametrize(
    "text",
    [
        " /usr/bin/python3 is broken",
        "/usr/bin/python3",
        "//msg bob",
        "  // comment",
        " /* comment */",
        "  / 2 = 4",
        "msg bob",
        "either/msg or",
        "see /msg bob",
        r"\w+ matches a word",
        r"\part{One}",
        r"\\server\share",
        "/msgs",
        "··· /msg",
        "￥/msg",
    ],
)
def test_a_line_with_a_slash_in_it_is_not_disguised(text: str) -> None:
    assert disguised_command(text) is None
    assert say_literally(text) == (f"/{text}" if text.startswith("/") else text)


any_line = st.text().map(clean).filter(bool)


@given(
    st.lists(
        any_line | st.builds("".join, st.tuples(st.sampled_from(DISGUISES), any_line)), min_size=1
    ).map("\n".join)
)
def test_disguised_lines_are_found_among_any_others(block: str) -> None:
    lines = block.split("\n")
    special = any(line[0] == "/" or disguised_command(line) for line in lines)
    assert may_be_disguised(block) or not special
    if not may_be_disguised(block):
        assert list(TEXT.parse_requests(block)) == [SayBlock(block)]


@given(st.sampled_from(DISGUISES) | st.text().map(clean).filter(bool), st.text().map(clean))
def test_text_that_is_sent_literally_is_a_message(start: str, rest: str) -> None:
    text = start + rest
    assert list(TEXT.parse_requests(say_literally(text))) == [SayBlock(text)]


@pytest.mark.parametrize(
    "blank",
    [" ", "\u200b", "␛", "␛[D", "\\", "a/", "\t/", "/\u200b", " /a\u200b", "a␡", "ノ", "\n\u0301"],
)
def test_the_longest_line_is_checked_in_linear_time(blank: str) -> None:
    line = blank * (65_536 // len(blank))
    started = time.process_time()
    for block in (line, "\n".join([line] * 4), f"{line}/msg"):
        may_be_disguised(block)
        disguised_command(block)
    assert time.process_time() - started < 5  # a quadratic pattern takes minutes


def test_names_of_commands_are_unique() -> None:
    names = [name for each in COMMANDS for name in (each.name, *each.aliases)]
    assert len({*names, *COMMANDS.unavailable}) == len(names) + len(COMMANDS.unavailable)
    assert all(name == name.lower() and name.startswith("/") for name in names)


def test_help_lists_every_name_of_every_command_on_one_screen() -> None:
    lines = COMMANDS.help_lines() + COMMANDS.help_lines(local=True)
    words = " ".join(lines).split()
    for command in COMMANDS:
        if command.help:
            assert {command.name, *command.aliases} <= set(words)
    assert len(COMMANDS.help_lines()) <= 22
    assert max(map(len, COMMANDS.help_lines())) <= 51  # 60 columns, with the tag


@pytest.mark.parametrize("name", sorted(COMMANDS.unavailable))
def test_commands_of_other_chats_are_answered_with_the_alternative(name: str) -> None:
    answer = parse_line(f"{name} something")
    assert isinstance(answer, Invalid)
    assert answer.error.text == COMMANDS.unavailable[name]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/query bob", "/query does not open a conversation; type /msg bob TEXT"),
        ("/query", "usage: /query WHO TEXT"),
        ("/exit now?", "usage: /exit; type //exit now? to say it"),
        ("/quit smoking is hard", "usage: /quit; type //quit smoking is hard to say it"),
        ("/ msg bob secret", "unknown command /; did you mean /msg?; start with // to send a line"),
        ("/\u043csg bob x", "unknown command /\u043csg; did you mean /msg?; start with //"),
        ("/\uff4dsg bob x", "unknown command /\uff4dsg; did you mean /msg?; start with //"),
        ("/ hello", "unknown command /; /help lists them"),
        ("/\u043a\u0442\u043e", "unknown command /\u043a\u0442\u043e; /help lists them"),
        ("/hlep", "unknown command /hlep; did you mean /help?; start with //"),
        ("/JION kitchen", "unknown command /JION; did you mean /join?; start with //"),
        ("/leav", "unknown command /leav; did you mean /leave?; start with //"),
        ("/knick bob", "unknown command /knick; /help lists them"),  # /kick or /nick
        ("/usr/bin/ld", "unknown command /usr/bin/ld; /help lists them"),
        ("/dance", "unknown command /dance; /help lists them"),
        ("/js", "unknown command /js; /help lists them"),
        (f"/{'help' * 20}", "unknown command /helphelphelp"),
    ],
)
def test_an_unknown_command_is_answered_with_a_suggestion(line: str, answer: str) -> None:
    asked = parse_line(line)
    assert isinstance(asked, Invalid)
    assert asked.error.text.startswith(answer)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("/usr/bin/ld: not found", "//usr/bin/ld: not found"),
        ("/msg bob hi", "/msg bob hi"),
        ("/QUIT", "/QUIT"),
        ("//usr", "//usr"),
        (" /msg bob", None),
        ("\\msg bob", None),
        ("/quti", "//quti"),
        ("/quit smoking", "/quit smoking"),
        ("/ msg bob x", "/ msg bob x"),
        ("/\u043csg bob x", "/\u043csg bob x"),
        ("/\u043c\u0441\u0433 bob x", "//\u043c\u0441\u0433 bob x"),
        ("  x", "  x"),
        (" /usr is full", "/say  /usr is full"),
        (" /usr/bin is full", " /usr/bin is full"),
        ("/logn alice swordfish", "/logn alice swordfish"),
        ("/regsiter swordfish", "/regsiter swordfish"),
        ("/Pasphrase swordfish", "/Pasphrase swordfish"),
        ("/loginalice swordfish", "/loginalice swordfish"),
        ("/passphraseswordfish", "/passphraseswordfish"),
        ("/login.html is broken", "//login.html is broken"),
        (" /logn alice swordfish", " /logn alice swordfish"),
        ("/login/page is broken", "//login/page is broken"),
        ("/auth", "/auth"),
        ("/auhtor", "//auhtor"),
        ("login alice swordfish", "login alice swordfish"),
    ],
)
def test_in_a_pipe_only_known_commands_are_commands(line: str, sent: str | None) -> None:
    assert say_unless_command(line) == sent


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("/kick bob", Kick("bob")),
        ("/kick  @bob  too  loud", Kick("bob", "too  loud")),
        ("/kick Client 7 enough", Kick("Client 7", "enough")),
        ("/kick client enough", Kick("client", "enough")),
        ("/ban bob", Ban("bob")),
        ("/ban 7 10m flooding", Ban("7", "10m", "flooding")),
        ("/ban Client 7 forever", Ban("Client 7", "forever")),
        ("/ban name bob 2h", Ban("name bob", "2h")),
        ("/ban 192.0.2.0/24 spam from there", Ban("192.0.2.0/24", "", "spam from there")),
        ("/ban bob 10x", Ban("bob", "10x")),
    ],
)
def test_an_operators_command_names_who_how_long_and_why(line: str, request_: Request) -> None:
    assert parse_line(line) == request_
    again = parse_line(TEXT.encode_request(request_))  # type: ignore[arg-type]
    assert again in (request_, Ban("192.0.2.0/24", "forever", "spam from there"))


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("login alice swordfish", "/login alice swordfish"),
        (" Login alice swordfish", "/Login alice swordfish"),
        ("login bob correct horse", "/login bob correct horse"),
        ("register swordfish", "/register swordfish"),
        ("passphrase swordfish", "/passphrase swordfish"),
        ("auth swordfish", "/auth swordfish"),
        ("login page broken", None),
        ("login alice correct horse", None),
        ("register now", None),
        ("register swordfish and more", None),
        ("login swordfish", None),
        ("login", None),
        ("authentication swordfish", None),
        ("account add alice swordfish", None),
    ],
)
def test_a_login_without_its_slash_is_recognized(line: str, command: str | None) -> None:
    assert without_slash(line, own_name="Bob") == command


async def test_a_reply_goes_to_the_last_sender_after_a_rename() -> None:
    async with memory_server() as network:
        a, b, c = [await network.join() for _ in range(3)]
        await a.send("/r hello?")
        assert await a.line() == "[Server] nobody has sent you a private message"
        await b.send("/msg 1 from b")
        assert await a.line() == "[Client 2 → you] from b"
        await c.send("/msg 1 from c")
        assert await a.line() == "[Client 3 → you] from c"
        await c.send("/name carol")
        await c.line()
        await b.send("/name Client3")
        await b.line()
        await a.send("/r to c", "/reply and again")
        assert await c.lines(2) == ["[Client 1 → you] to c", "[Client 1 → you] and again"]
        await c.finish()
        await c.rest()
        await a.send("/r too late", "/ping")
        assert await a.lines(2) == ["[Server] there is no client 3", "[Server] pong"]
        await b.send("/ping")
        assert await b.line() == "[Server] pong"


async def test_irc_commands_do_what_people_expect() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await b.send("/nick bob", "/join #kitchen")
        assert await b.lines(2) == [
            "[Server] Client 2 is now bob",
            "[Server] you are in kitchen; nobody else is here",
        ]
        await a.send("/query @bob hi", "/w bob: hi", "/who #kitchen", "/names")
        assert await b.lines(2) == ["[Client 1 → you] hi", "[Client 1 → you] hi"]
        assert await a.lines(4) == [
            "[Server] 1 in kitchen:",
            "[Server] 2 bob",
            "[Server] 1 in lobby:",
            "[Server] 1 Client 1",
        ]
        await a.send("/who attic", "/who not a room", "/list")
        answers = await a.lines(5)
        assert answers[0] == "[Server] nobody is in attic"
        assert answers[1].startswith("[Server] a room's name consists of")
        assert answers[2:] == [
            "[Server] rooms and their members:",
            "[Server] lobby 1",
            "[Server] kitchen 1",
        ]
        await b.send("/msg #lobby hi", "/join bad room")
        answers = await b.lines(2)
        assert answers[0] == (
            "[Server] nobody here is called '#lobby'; to talk in a room, first type /join lobby"
        )
        assert answers[1].startswith("[Server] a room's name consists of")
        await b.send("/part", "/topic", "/exit")
        assert await b.rest() == [
            "[Server] you are in lobby; 2 are here",
            "[Server] lobby has no topic",
            "[Server] goodbye: you asked to leave",
        ]


def test_every_alias_makes_the_request_of_its_command() -> None:
    for command in COMMANDS:
        for alias in command.aliases:
            for rest in ("", " bob hi", " kitchen"):
                of_alias, of_command = parse_line(alias + rest), parse_line(command.name + rest)
                if not isinstance(of_command, Invalid):
                    assert of_alias == of_command
    assert parse_line("/M bob x") == Direct("bob", "x")
    assert COMMANDS.find("/LIST") is COMMANDS.find("/rooms")


async def test_who_with_the_name_of_a_person_names_the_room() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/name alice", "/join den")
        await a.lines(2)
        await b.send("/who ALICE", "/who attic", "/who den")
        assert await b.lines(4) == [
            "[Server] ALICE is not a room; a person with that name is in den",
            "[Server] nobody is in attic",
            "[Server] 1 in den:",
            "[Server] 1 alice",
        ]
        async with network.chat() as chat:
            assert await chat.members("alice") == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/account add alice swordfish", "/account add alice …"),
        (" /Account  add alice sword fish", " /Account  add alice …"),
        ("/account remove alice", "/account remove alice"),
        ("/acount add alice swordfish", "/acount …"),
        ("/accountadd alice swordfish", "/accountadd …"),
        ("account add alice swordfish", "account …"),
        ("/register swordfish", "/register …"),
        ("/kick alice for a login", "/kick alice for a login"),
        ("the login works again", "the login works again"),
        ("/help", "/help"),
        ("  ", "  "),
    ],
)
def test_the_console_does_not_show_a_possible_passphrase(line: str, shown: str) -> None:
    assert masked(line) == shown
