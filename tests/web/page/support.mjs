// What the tests of the page's modules share: a chat whose server is the test.

import { Chat } from "../../../multichat/web/page/chat.js";

export const PAGE = "../../../multichat/web/page";

/** Return a chat that is connected as client 1, "alice", in *rooms*. */
export function onlineChat({ saved = null, rooms = { lobby: { members: 2, last: null } }, resumed = false } = {}) {
  const chat = new Chat({ saved, prefix: "p", random: () => 0.5, now: () => 1_000_000 });
  const sent = connect(chat, { rooms, resumed });
  return { chat, sent };
}

/** Make a connection, welcome included; return the requests that the page has sent. */
export function connect(chat, { rooms = { lobby: { members: 2, last: null } }, resumed = true, name = "alice" } = {}) {
  chat.session.connecting(0);
  const [hello] = chat.opened(0);
  const welcome = { type: "welcome", protocol: 1, client: 1, name, room: "lobby", members: 2, limits: { line: 65536, name: 32, wait: 0 }, last: null, server: "multichat", resumed, session: "token", rooms };
  const result = receive(chat, welcome);
  return { hello: JSON.parse(hello.slice("/json ".length)), ...result };
}

/** Let *events* arrive in one message; return the effects and the requests that are sent. */
export function receive(chat, ...events) {
  const { effects, lines, close } = chat.received(events.map((event) => JSON.stringify(event)).join("\n"), 1);
  return { effects, close, sent: lines.map((line) => (line.startsWith("{") ? JSON.parse(line) : line)) };
}

/** Return the requests that a person's action has made. */
export function taken(chat) {
  return chat.takeLines().map((line) => JSON.parse(line));
}

export function said(number, fields = {}) {
  return { type: "said", id: `e-${1_000_000 + number}`, time: "2025-01-15T10:30:45.123Z", room: "lobby", client: 2, name: "bob", text: `message ${number}`, ...fields };
}

export const textsOf = (conversation) => conversation.items.filter((item) => item.kind === "said").map((item) => item.text);
