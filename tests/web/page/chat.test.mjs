import assert from "node:assert/strict";
import test from "node:test";
import { Chat } from "../../../multichat/web/page/chat.js";
import { rowsOf } from "../../../multichat/web/page/rows.js";
import { MAX_UNACKNOWLEDGED } from "../../../multichat/web/page/outbox.js";
import { connect, onlineChat, receive, said, taken, textsOf } from "./support.mjs";

const nonceOf = (requests, type) => requests.find((request) => request.type === type)?.nonce;

test("a passphrase is not sent where others could read it", () => {
  const chat = new Chat({ prefix: "p", random: () => 0.5, now: () => 1, isPrivate: false });
  connect(chat);
  for (const line of ["/register correct horse", "/login alice correct horse", "/passphrase correct horse"]) {
    const [effect] = chat.typed(chat.shown, line);
    assert.ok(effect.isError);
    assert.match(effect.text, /^Not sent: .* https/u);
  }
  assert.deepEqual(taken(chat), []);
});

test("a fresh room requests its history, and merges it with messages that came meanwhile", () => {
  const { chat, sent } = onlineChat();
  assert.deepEqual(sent.hello, { protocol: 1, rooms: { lobby: {} } });
  const nonce = nonceOf(sent.sent, "history");
  receive(chat, said(3), said(4));
  receive(chat, { type: "history", room: "lobby", more: true, nonce, messages: [said(1), said(2), said(3)] });
  assert.deepEqual(textsOf(chat.shown), ["message 1", "message 2", "message 3", "message 4"]);
  assert.ok(chat.shown.hasMore);
  assert.equal(chat.shown.unread, 2); // the live ones: the user is not looking
});

test("after a lost connection every room continues after its last message", () => {
  const { chat } = onlineChat();
  receive(chat, said(1), said(2));
  chat.closed(1);
  const { hello } = connect(chat);
  assert.deepEqual(hello.rooms, { lobby: { since: "e-1000002" } });
  assert.equal(hello.session, "token");
  receive(chat, said(2), said(3));
  assert.deepEqual(textsOf(chat.shown), ["message 1", "message 2", "message 3"]);
});

test("after a lost connection a room that was empty begins with its first message", () => {
  const { chat, sent } = onlineChat();
  receive(chat, { type: "history", room: "lobby", more: false, nonce: nonceOf(sent.sent, "history"), messages: [] });
  chat.typed(chat.shown, "mine");
  const [{ nonce }] = taken(chat);
  receive(chat, { type: "accepted", nonce, id: said(2).id });
  chat.closed(1);
  const { hello, sent: again } = connect(chat, { rooms: { lobby: { members: 2, last: said(3).id } } });
  assert.deepEqual(hello.rooms, { lobby: { replay: 2 ** 31 - 1 } }); // all of them: our own was not the first
  assert.equal(nonceOf(again, "history"), undefined);
  receive(chat, said(1), said(2, { text: "mine", client: 1 }), said(3));
  assert.deepEqual(textsOf(chat.shown), ["message 1", "mine", "message 3"]);
});

test("`since` is never the id of our own message", () => {
  const { chat } = onlineChat();
  receive(chat, said(1));
  chat.typed(chat.shown, "mine");
  chat.pump();
  const [request] = taken(chat);
  receive(chat, { type: "accepted", nonce: request.nonce, id: "e-1000009" });
  chat.closed(1);
  assert.equal(connect(chat).hello.rooms.lobby.since, "e-1000001");
  receive(chat, said(5));
  assert.deepEqual(textsOf(chat.shown), ["message 1", "message 5", "mine"]);
});

test("a message is pending until it is accepted, and has its place then", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "mine");
  const [request] = taken(chat);
  assert.deepEqual(request, { type: "say", text: "mine", room: "lobby", nonce: request.nonce });
  receive(chat, said(1));
  assert.deepEqual(textsOf(chat.shown), ["message 1", "mine"]);
  assert.equal(chat.shown.items.at(-1).state, "pending");
  receive(chat, said(3), { type: "accepted", nonce: request.nonce, id: "e-1000002" });
  assert.deepEqual(textsOf(chat.shown), ["message 1", "mine", "message 3"]);
  assert.equal(chat.shown.items[1].state, "");
  assert.equal(chat.outbox.pending.length, 0);
});

test("messages typed offline survive a reload and are sent once, with their nonces", () => {
  const { chat } = onlineChat();
  chat.closed(1);
  chat.typed(chat.shown, "offline");
  assert.deepEqual(taken(chat), []);
  const saved = JSON.parse(JSON.stringify(chat.keep()));
  const again = new Chat({ saved, prefix: "q", random: () => 0.5, now: () => 2 });
  assert.deepEqual(textsOf(again.shown), ["offline"]);
  const first = connect(again).sent.filter(({ type }) => type === "say");
  again.closed(2);
  const second = connect(again).sent.filter(({ type }) => type === "say");
  assert.equal(first.length, 1);
  assert.deepEqual(second, first);
  assert.ok(first[0].nonce.startsWith("p-"));
  assert.ok(again.outbox.nonce().startsWith("q-"));
  receive(again, { type: "accepted", nonce: first[0].nonce, id: "e-1000001" });
  assert.equal(again.outbox.pending.length, 0);
});

test("an accepted message that is also in the history appears once", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "mine");
  const [{ nonce }] = taken(chat);
  receive(chat, said(1, { client: 1, name: "alice", text: "mine" }));
  receive(chat, { type: "accepted", nonce, id: "e-1000001" });
  assert.deepEqual(textsOf(chat.shown), ["mine"]);
});

test("no more messages are unacknowledged than the server remembers", () => {
  const { chat } = onlineChat();
  for (let number = 0; number < 500; number++) chat.typed(chat.shown, `line ${number}`);
  const sent = taken(chat);
  assert.equal(sent.length, MAX_UNACKNOWLEDGED);
  const more = receive(chat, { type: "accepted", nonce: sent[0].nonce, id: "e-1000001" });
  assert.deepEqual(more.sent.map(({ text }) => text), [`line ${MAX_UNACKNOWLEDGED}`]);
});

test("a refused message can be tried again, with another nonce", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "mine");
  const [{ nonce }] = taken(chat);
  receive(chat, { type: "error", code: "rejected", text: "no", nonce });
  const [item] = chat.shown.items;
  assert.equal(item.state, "failed");
  assert.deepEqual(chat.retry(chat.shown, item), []);
  const [again] = taken(chat);
  assert.notEqual(again.nonce, nonce);
  assert.equal(again.text, "mine");
});

test("a refused message that cannot be sent again is kept", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "mine");
  const [{ nonce }] = taken(chat);
  receive(chat, { type: "error", code: "rejected", text: "no", nonce });
  const [item] = chat.shown.items;
  chat.closed(1);
  while (!chat.outbox.isFull) chat.typed(chat.shown, "more");
  assert.ok(chat.retry(chat.shown, item)[0].isError);
  assert.ok(chat.shown.items.includes(item));
});

test("unread messages and mentions are counted in conversations that are not looked at", () => {
  const rooms = { lobby: { members: 1, last: null }, ops: { members: 1, last: null } };
  const { chat } = onlineChat({ rooms });
  chat.attend(true);
  receive(chat, said(1), said(1, { room: "ops" }), said(2, { room: "ops", text: "alice: look" }));
  const [lobby, ops] = chat.rooms;
  assert.deepEqual([lobby.unread, ops.unread, ops.mentions], [0, 2, 1]);
  assert.equal(ops.divider.text, "message 1");
  chat.show(ops.key);
  chat.attend(true);
  assert.deepEqual([ops.unread, ops.mentions], [0, 0]);
  assert.ok(ops.divider);
  chat.show(lobby.key);
  assert.equal(ops.divider, null);
});

test("after a reload the messages after the last one read are unread", () => {
  const { chat } = onlineChat();
  chat.attend(true);
  receive(chat, said(1));
  const again = new Chat({ saved: chat.keep(), prefix: "q", random: () => 0.5, now: () => 2 });
  const nonce = nonceOf(connect(again).sent, "history");
  receive(again, { type: "history", room: "lobby", more: false, nonce, messages: [said(1), said(2), said(3, { client: 1 })] });
  assert.equal(again.shown.unread, 1);
  assert.equal(again.shown.divider.text, "message 2");
});

test("after a reload messages that come before the history are counted with it", () => {
  const { chat } = onlineChat();
  receive(chat, said(1));
  chat.attend(true);
  const saved = JSON.parse(JSON.stringify(chat.keep()));
  const { chat: again, sent } = onlineChat({ saved, resumed: true });
  receive(again, said(4, { text: "alice, hello" }));
  const messages = [said(1), said(2), said(3), said(4, { text: "alice, hello" })];
  receive(again, { type: "history", room: "lobby", more: false, nonce: nonceOf(sent.sent, "history"), messages });
  assert.equal(again.shown.unread, 3);
  assert.equal(again.shown.mentions, 1);
  assert.equal(again.shown.divider.text, "message 2");
});

test("private messages have a separate conversation", () => {
  const { chat } = onlineChat();
  const { effects } = receive(chat, { type: "direct", time: "", client: 7, name: "bob", text: "psst" });
  assert.equal(effects[0].type, "heard");
  const [bob] = chat.directs;
  assert.equal(bob.mentions, 1);
  chat.typed(bob, "yes?");
  chat.typed(chat.shown, "/msg Client 9 hello");
  chat.typed(chat.shown, "/r again");
  const sent = taken(chat);
  assert.deepEqual(sent.map(({ type, to, text }) => [type, to, text]), [["direct", "bob", "yes?"], ["direct", 9, "hello"], ["direct", "bob", "again"]]);
  receive(chat, { type: "accepted", nonce: sent[0].nonce });
  assert.equal(bob.items[1].state, "");
  receive(chat, { type: "renamed", client: 7, old: "bob", name: "robert" });
  assert.equal(chat.directs[0].title, "robert");
  receive(chat, { type: "direct", time: "", client: 8, name: "robert", text: "it is me" });
  assert.ok(chat.directs[0].items.some(({ text }) => /perhaps another person/u.test(text ?? "")));
});

test("private messages survive a reload", () => {
  const { chat } = onlineChat();
  receive(chat, { type: "direct", time: "", client: 7, name: "bob", text: "psst" });
  const again = new Chat({ saved: JSON.parse(JSON.stringify(chat.keep())), prefix: "q" });
  assert.deepEqual(textsOf(again.directs[0]), ["psst"]);
  assert.equal(again.directs[0].unread, 1);
});

test("rooms are entered and left, and the page follows", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "/join #Kitchen");
  const [{ nonce, ...request }] = taken(chat);
  assert.deepEqual(request, { type: "enter", room: "Kitchen" });
  const { effects } = receive(chat, { type: "joined", client: 1, name: "alice", room: "kitchen", members: 3, nonce, topic: "tea" });
  assert.deepEqual(effects, [{ type: "opened", key: "#kitchen" }]);
  chat.show("#kitchen");
  assert.deepEqual([chat.shown.title, chat.shown.topic, chat.shown.memberCount], ["kitchen", "tea", 3]);
  taken(chat);
  chat.typed(chat.shown, "/part");
  const [left] = taken(chat);
  receive(chat, { type: "left", client: 1, name: "alice", reason: "", room: "kitchen", nonce: left.nonce });
  assert.equal(chat.shown.title, "lobby");
  assert.equal(chat.rooms.length, 1);
});

test("joins and leaves between two messages are one line", () => {
  const { chat } = onlineChat();
  const joined = (client, name) => ({ type: "joined", client, name, room: "lobby", members: 4 });
  receive(chat, joined(5, "eve"), joined(6, "Client 6"), { type: "renamed", client: 6, old: "Client 6", name: "mallory" });
  receive(chat, { type: "left", client: 5, name: "eve", room: "lobby", reason: "", members: 3 });
  assert.equal(chat.shown.items.length, 1);
  receive(chat, said(1), joined(8, "x"));
  assert.equal(chat.shown.items.length, 3);
  assert.deepEqual([...chat.shown.members], [[6, "mallory"], [8, "x"]]);
});

test("an id from another history starts the room anew, and keeps what is not sent", () => {
  const { chat, sent: asked } = onlineChat();
  receive(chat, { type: "history", room: "lobby", more: false, nonce: nonceOf(asked.sent, "history"), messages: [said(1)] });
  chat.closed(1);
  chat.typed(chat.shown, "mine");
  connect(chat, { resumed: false });
  const { sent } = receive(chat, { type: "error", code: "unknown-id", text: "?", room: "lobby" });
  assert.deepEqual(textsOf(chat.shown), ["mine"]);
  const history = sent.find(({ type }) => type === "history");
  assert.equal(history.before, undefined);
  receive(chat, { type: "history", room: "lobby", more: false, nonce: history.nonce, messages: [] });
  chat.closed(2);
  assert.deepEqual(connect(chat).hello.rooms, { lobby: { replay: 2 ** 31 - 1 } }); // it was empty
});

test("a room that starts anew continues after its last message", () => {
  const { chat } = onlineChat();
  receive(chat, said(1));
  chat.closed(1);
  const rooms = { lobby: { members: 2, last: "f-1000007" } };
  connect(chat, { resumed: false, rooms });
  const { sent } = receive(chat, { type: "error", code: "unknown-id", text: "?", room: "lobby" });
  receive(chat, { type: "history", room: "lobby", more: true, nonce: nonceOf(sent, "history"), messages: [said(0, { id: "f-1000007" })] });
  chat.closed(2);
  assert.deepEqual(connect(chat, { rooms }).hello.rooms, { lobby: { since: "f-1000007" } });
});

test("the user is notified when the server has forgotten the session", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "mine");
  taken(chat);
  chat.closed(1);
  const { effects } = connect(chat, { resumed: false });
  assert.match(effects.find(({ type }) => type === "told").text, /twice/u);
});

test("a command without an answer because of a lost connection is reported", () => {
  const { chat } = onlineChat();
  assert.deepEqual(chat.closed(1), []); // no user waits for requests of the page itself
  connect(chat);
  chat.typed(chat.shown, "/name bob");
  const [told] = chat.closed(2);
  assert.match(told.text, /before your command was answered/u);
  assert.deepEqual(chat.closed(3), []);
});

test("a refused name opens the dialog again", () => {
  const { chat } = onlineChat();
  const { effects } = receive(chat, { type: "error", code: "name-taken", text: "the name 'alice' is taken" });
  assert.deepEqual(effects, [{ type: "name", text: "the name 'alice' is taken" }]);
});

test("a line that is too long is refused", () => {
  const { chat } = onlineChat();
  const [effect] = chat.typed(chat.shown, "é".repeat(40_000));
  assert.ok(effect.isError);
  assert.equal(chat.outbox.pending.length, 0);
});

test("passphrases are not kept", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "/login alice correct horse");
  chat.typed(chat.shown, "/register correct horse");
  chat.session.setPassword("correct horse");
  for (const line of ["/login alice", "/logn alice", "/loginalice", "/ login alice", "/REGSITER", " /pasphrase", "hello\n/login alice"]) {
    chat.shown.draft = `${line} correct horse`;
    assert.ok(!JSON.stringify(chat.keep()).includes("correct horse"), line);
  }
  for (const draft of ["a correct horse", "/leave it", "/me is correct", "//login alice", "/rooms", "/usr is full"]) {
    chat.shown.draft = draft;
    assert.ok(JSON.stringify(chat.keep()).includes(draft), draft);
  }
});

test("ten thousand messages are bounded and stay in order", () => {
  const { chat } = onlineChat();
  for (let start = 0; start < 15_000; start += 500) {
    receive(chat, ...Array.from({ length: 500 }, (_, number) => said(start + number)));
  }
  assert.ok(chat.shown.items.length <= 11_000);
  assert.equal(chat.shown.items.at(-1).text, "message 14999");
  assert.ok(chat.shown.hasMore);
});

test("any order and any repetition of the same messages gives the same room", () => {
  let seed = 7;
  const random = (most) => (seed = (seed * 48271) % 2147483647) % most;
  for (let round = 0; round < 200; round++) {
    const { chat } = onlineChat();
    const conversation = chat.shown;
    const all = Array.from({ length: 12 }, (_, number) => number);
    let live = 0;
    for (let step = 0; step < 20; step++) {
      const what = random(3);
      if (what === 0 && live < 12) receive(chat, said(live++));
      else if (what === 1) receive(chat, said(random(Math.max(1, live))));
      else {
        const from = random(12);
        const page = all.slice(from, from + 4).filter((number) => number < live).map((number) => ({ ...said(number), key: `s${number}`, kind: "said", version: 0 }));
        conversation.addPage(page);
      }
    }
    const ids = conversation.items.map(({ id }) => id);
    assert.deepEqual(ids, [...new Set(ids)].sort());
    assert.equal(ids.length, live);
  }
});

test("the last conversation stays, whatever the server sends", () => {
  const { chat } = onlineChat();
  receive(chat, { type: "left", client: 1, name: "alice", reason: "", room: "lobby" });
  assert.equal(chat.shown.title, "lobby");
  assert.deepEqual(chat.leave(chat.shown), []);
  assert.equal(chat.shown.title, "lobby");
});

test("the members of a large room are asked for once, not with every change", () => {
  const { chat, sent } = onlineChat({ rooms: { lobby: { members: 5000, last: null } } });
  assert.equal(sent.sent.filter(({ type }) => type === "who").length, 1);
  const presence = { type: "presence", joined: 20, left: 0, renamed: 0, room: "lobby" };
  assert.deepEqual(receive(chat, { ...presence, members: 5020 }).sent, []);
  assert.deepEqual(receive(chat, { ...presence, members: 40 }).sent.map(({ type }) => type), ["who"]);
});

test("an ignored client is neither counted nor shown, also under another name", () => {
  const { chat } = onlineChat();
  assert.match(chat.typed(chat.shown, "/ignore Bob")[0].text, /hidden/u);
  const { effects } = receive(chat, said(1, { text: "alice!" }), { type: "direct", time: "", client: 2, name: "bob", text: "psst" });
  assert.deepEqual(effects, []);
  assert.deepEqual([chat.shown.unread, chat.directs.length], [0, 0]);
  receive(chat, { type: "renamed", client: 2, old: "bob", name: "eve" }, said(2, { name: "eve" }), said(3, { client: 3, name: "carol" }));
  const rows = rowsOf(chat.shown.items, 0, chat.shown.items.length, null, chat.ignored);
  assert.deepEqual(rows.filter(({ kind }) => kind === "said").map(({ item }) => item.name), ["carol"]);
  assert.deepEqual(chat.keep().ignored, ["bob"]);
  chat.typed(chat.shown, "/ignore bob");
  assert.ok(rowsOf(chat.shown.items, 0, chat.shown.items.length, null, chat.ignored).some(({ item }) => item?.name === "bob"));
});

test("a name that an ignored person has had for a while is not ignored for its next owner", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "/ignore bob");
  receive(chat, { type: "renamed", client: 2, old: "bob", name: "carol" }, { type: "renamed", client: 2, old: "carol", name: "eve" });
  const { effects } = receive(chat, said(1, { name: "eve" }), said(2, { client: 3, name: "carol" }));
  assert.deepEqual(effects.filter(({ type }) => type === "heard").map(({ item }) => item.name), ["carol"]);
});

test("an ignored client stays ignored after a rename that was not announced", () => {
  const { chat } = onlineChat();
  chat.typed(chat.shown, "/ignore bob");
  receive(chat, said(1), { type: "presence", room: "lobby", joined: 0, left: 0, renamed: 30, members: 2 });
  assert.deepEqual(receive(chat, said(2, { name: "eve" }), { type: "direct", client: 2, name: "eve", text: "psst" }).effects, []);
  connect(chat, { resumed: false }); // the numbers may belong to other clients now
  assert.equal(receive(chat, said(3, { name: "eve" })).effects.length, 1);
});

test("one person has one private conversation, under however many names", () => {
  const { chat } = onlineChat();
  const names = Array.from({ length: 300 }, (_, number) => `m${number}`);
  receive(chat, { type: "direct", client: 3, name: "carol", text: "at noon" });
  receive(chat, ...names.map((name) => ({ type: "direct", client: 2, name, text: "hi" })));
  assert.deepEqual(chat.directs.map(({ title }) => title), ["carol", "m299"]);
});

test("endless strangers close no conversation in which we have written", () => {
  const { chat } = onlineChat();
  receive(chat, { type: "direct", client: 3, name: "carol", text: "at noon" });
  chat.typed(chat.direct("carol"), "I will be there");
  for (let client = 10; client < 500; client++) receive(chat, { type: "direct", client, name: `m${client}`, text: "hi" });
  assert.deepEqual(textsOf(chat.direct("carol")), ["at noon", "I will be there"]);
  assert.ok(chat.conversations.size <= 200);
});

test("long private messages do not keep others from surviving a reload", () => {
  const { chat } = onlineChat();
  receive(chat, { type: "direct", client: 3, name: "carol", text: "at noon" });
  for (let number = 0; number < 120; number++) receive(chat, { type: "direct", client: 2, name: "mallory", text: "x".repeat(60_000) });
  const kept = JSON.stringify(chat.keep());
  assert.ok(kept.length < 1_100_000, kept.length);
  const again = onlineChat({ saved: JSON.parse(kept) });
  assert.deepEqual(textsOf(again.chat.direct("carol")), ["at noon"]);
  assert.ok(textsOf(again.chat.direct("mallory")).length > 5);
});

test("a server that repeats the same history is not asked forever", () => {
  const { chat, sent } = onlineChat();
  const page = { type: "history", room: "lobby", more: true, messages: [said(1), said(2)] };
  receive(chat, { ...page, nonce: nonceOf(sent.sent, "history") });
  assert.ok(chat.loadOlder(chat.shown));
  receive(chat, { ...page, nonce: nonceOf(taken(chat), "history") });
  assert.ok(!chat.loadOlder(chat.shown));
});

test("a cleared conversation is empty, and stays so", () => {
  const { chat } = onlineChat();
  receive(chat, said(1));
  chat.typed(chat.shown, "not sent yet");
  chat.typed(chat.shown, "/clear");
  assert.deepEqual(textsOf(chat.shown), ["not sent yet"]);
  receive(chat, said(1), said(2));
  assert.deepEqual(textsOf(chat.shown), ["message 2", "not sent yet"]);
});
