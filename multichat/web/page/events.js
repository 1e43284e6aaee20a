// What each event of the server changes in the `Chat`.  Pure: no DOM.
//
// A handler takes the chat, the event, the effects to add to, and the request that the event
// answers, if it is one of ours.

import { directItem, noteIn, saidItem } from "./items.js";
import { directKey, roomKey } from "./names.js";

// More than anybody reads; by default our server lets a client be in 32.
const MAX_ROOMS = 100;

// How many of a room's members are kept by name; the count is always right.
const MAX_MEMBERS = 5000;

// In larger rooms the list of members is requested only when the user shows the room.
const SMALL_ROOM = 200;

/** The room that an event is about; an event without one is about our only room. */
function roomOf(chat, event) {
  if (event.room) return chat.conversations.get(roomKey(event.room));
  return chat.rooms.length === 1 ? chat.rooms[0] : undefined;
}

/** We are in a room, by a welcome or because we entered it. */
function entered(chat, conversation, { members, last, topic }) {
  conversation.isIn = true;
  conversation.memberCount = members ?? conversation.memberCount;
  conversation.topic = topic ?? "";
  conversation.last = last ?? null;
  conversation.since ??= conversation.last;
  if (conversation.isFresh) chat.loadOlder(conversation);
  if (conversation.key === chat.current || conversation.memberCount <= SMALL_ROOM) askWho(chat, conversation);
}

function askWho(chat, conversation) {
  chat.ask({ type: "who", room: conversation.title }, "members");
}

function rename(chat, client, old, name) {
  const from = directKey(old);
  const conversation = chat.conversations.get(from);
  const isTheirs = conversation?.client === client || conversation?.client === null;
  if (!conversation || !isTheirs || chat.conversations.has(directKey(name))) return;
  Object.assign(conversation, { key: directKey(name), title: name });
  chat.conversations = new Map([...chat.conversations.values()].map((each) => [each.key, each]));
  if (chat.current === from) chat.current = conversation.key;
  noteIn(conversation, chat, "notice", `${old} is now ${name}`);
}

/** A client that wrote before has another name now; in a large room no event has said so. */
function followName(chat, { client, name }) {
  const known = chat.directs.find((each) => each.isKnown && each.client === client);
  if (!known || known.key === directKey(name)) return;
  known.isKnown = false;
  rename(chat, client, known.title, name);
}

function setName(chat, name) {
  chat.me.name = name;
  for (const { title, members } of chat.rooms) if (title && members.has(chat.me.client)) members.set(chat.me.client, name);
}

export const HANDLERS = Object.freeze({
  welcome(chat, event, effects) {
    const wanted = chat.me.name;
    const unsettled = chat.outbox.isTried;
    if (!event.resumed) chat.ignored.forgetClients();
    chat.me.client = event.client;
    chat.me.account = event.account ?? "";
    chat.credentials = null;
    setName(chat, event.name);
    for (const [name, state] of [...(event.rooms ?? [[event.room, event]])].slice(0, MAX_ROOMS)) {
      const conversation = chat.room(name);
      conversation.title = name;
      entered(chat, conversation, state);
    }
    for (const { item } of chat.items.values()) {
      item.client = event.client;
      item.name = event.name;
      item.version += 1;
    }
    if (!event.resumed && unsettled) {
      effects.push({ type: "told", text: "The server has forgotten this session: messages that were on their way may appear twice.", isError: true });
    }
    effects.push({ type: "online", wanted });
  },

  said(chat, event, effects) {
    const conversation = chat.conversations.get(roomKey(event.room));
    if (!conversation) return;
    if (conversation.since === null || event.id > conversation.since) conversation.since = event.id;
    const item = saidItem(chat, event);
    if (!conversation.insert(item) || item.isOwn) return;
    hear(chat, conversation, item, effects);
  },

  direct(chat, event, effects) {
    if (chat.ignored.has(event)) return;
    followName(chat, event);
    const conversation = chat.direct(event.name);
    if (conversation.client !== null && conversation.client !== event.client && conversation.items.length > 0) {
      noteIn(conversation, chat, "notice", `${event.name} is another connection now (client ${event.client}), perhaps another person.`);
    }
    conversation.client = event.client;
    conversation.isKnown = true;
    chat.lastSender = event.name;
    const item = directItem(chat, event);
    conversation.append(item);
    hear(chat, conversation, item, effects);
  },

  accepted(chat, event) {
    chat.outbox.settle(event.nonce);
    const found = chat.items.get(event.nonce);
    if (!found) return;
    chat.items.delete(event.nonce);
    found.conversation.settle(found.item, event.id ?? null);
  },

  joined(chat, event, effects, request) {
    if (request) {
      const conversation = chat.room(event.room ?? "");
      entered(chat, conversation, event);
      if (request.isTyped) effects.push({ type: "opened", key: conversation.key });
      return;
    }
    const conversation = roomOf(chat, event);
    if (!conversation || event.client === chat.me.client) return;
    if (conversation.members.size < MAX_MEMBERS) conversation.members.set(event.client, event.name);
    conversation.memberCount = event.members ?? conversation.memberCount;
    conversation.changed(chat.now(), event);
  },

  left(chat, event, effects, request) {
    const conversation = roomOf(chat, event);
    if (!conversation) return;
    if (request || event.client === chat.me.client) {
      chat.forget(conversation);
      return;
    }
    conversation.members.delete(event.client);
    conversation.memberCount = event.members ?? conversation.memberCount;
    conversation.changed(chat.now(), event);
  },

  renamed(chat, event, effects) {
    if (event.client === chat.me.client) {
      setName(chat, event.name);
      if (event.nonce !== undefined) effects.push({ type: "told", text: `You are ${event.name} now.`, isError: false });
      return;
    }
    chat.ignored.has({ client: event.client, name: event.old }); // and stays so
    rename(chat, event.client, event.old, event.name);
    for (const conversation of chat.rooms) {
      if (!conversation.members.has(event.client)) continue;
      conversation.members.set(event.client, event.name);
      conversation.changed(chat.now(), event);
    }
  },

  presence(chat, event) {
    const conversation = roomOf(chat, event);
    if (!conversation) return;
    conversation.memberCount = event.members;
    conversation.changed(chat.now(), event);
    if (conversation.key === chat.current && event.members <= SMALL_ROOM) askWho(chat, conversation);
  },

  missed(chat, event) {
    const text = event.count === 1 ? "1 message was missed" : `${event.count} messages were missed`;
    noteIn(roomOf(chat, event), chat, "missed", text);
  },

  members(chat, event, effects, request) {
    const conversation = chat.conversations.get(roomKey(event.room));
    if (conversation?.isIn) {
      conversation.members = new Map(event.members.slice(0, MAX_MEMBERS).map(({ client, name }) => [client, name]));
      conversation.memberCount = event.members.length;
    }
    if (!request?.isTyped) return;
    const names = event.members.slice(0, 100).map(({ name }) => name).join(", ");
    const nobody = event.person_in ? `${event.room} is a person, in ${event.person_in}` : `Nobody is in ${event.room}`;
    noteIn(chat.shown, chat, "notice", names ? `${event.members.length} in ${event.room}: ${names}` : nobody);
  },

  history(chat, event, effects, request) {
    const conversation = chat.conversations.get(request?.key);
    if (!conversation) return;
    const wasFresh = conversation.isFresh;
    conversation.isLoading = false;
    conversation.isFresh = false;
    const page = event.messages.filter(({ room }) => roomKey(room) === conversation.key);
    const fresh = conversation.addPage(page.map((message) => saidItem(chat, message)));
    // Do not ask a server that repeats itself forever.
    conversation.hasMore = event.more && (fresh.length > 0 || wasFresh);
    const unread = event.missed === 1 ? "1 message" : `${event.missed} messages`;
    if (event.missed) noteIn(conversation, chat, "missed", `${unread} of the history cannot be read`);
    if (!wasFresh) return;
    if (conversation.key === chat.current && chat.isAttentive) conversation.markRead();
    else if (conversation.read !== null) conversation.countUnread(chat.me.client);
    else if (conversation.unread === 0) conversation.markRead();
  },

  topic(chat, event) {
    const conversation = chat.conversations.get(roomKey(event.room));
    if (!conversation) return;
    conversation.topic = event.text;
    const topic = event.text ? `the topic: ${event.text}` : "no topic";
    noteIn(conversation, chat, "notice", event.name ? `${event.name} set ${topic}` : `This room has ${topic}`);
  },

  bans(chat, event) {
    const bans = event.bans.slice(0, 100).map(({ what, reason }) => (reason ? `${what} (${reason})` : what));
    noteIn(chat.shown, chat, "notice", bans.length > 0 ? `Banned: ${bans.join(", ")}` : "Nobody is banned");
  },

  notice(chat, event, effects) {
    noteIn(chat.shown, chat, "notice", event.text);
    effects.push({ type: "announced", text: event.text });
  },

  "logged-in"(chat, event, effects) {
    chat.me.account = event.name;
    setName(chat, event.name);
    effects.push({ type: "told", text: `You are logged in as ${event.name}.`, isError: false });
  },

  "logged-out"(chat, event, effects) {
    chat.me.account = "";
    setName(chat, event.name);
    const why = event.reason ? ` (${event.reason})` : "";
    effects.push({ type: "told", text: `You are logged out${why}, and called ${event.name} now.`, isError: Boolean(event.reason) });
  },

  error(chat, event, effects, request) {
    const sent = chat.items.get(event.nonce);
    if (sent) {
      chat.outbox.settle(event.nonce);
      chat.items.delete(event.nonce);
      sent.conversation.fail(sent.item, event.text);
      if (event.code === "login-required" && sent.conversation.key === chat.current) effects.push({ type: "login", text: event.text });
      return;
    }
    if (request?.purpose === "history") {
      const conversation = chat.conversations.get(request.key);
      if (conversation) Object.assign(conversation, { isLoading: false, hasMore: false, isFresh: false });
      noteIn(conversation, chat, "error", event.text);
      return;
    }
    if (request?.dialog || request?.purpose === "members") return;
    const conversation = event.room ? chat.conversations.get(roomKey(event.room)) : undefined;
    if (event.code === "unknown-id" && conversation) {
      conversation.reset();
      chat.loadOlder(conversation);
    } else if (!request && ["name-taken", "invalid-name", "name-assigned", "banned"].includes(event.code) && !event.room) {
      effects.push({ type: "name", text: event.text });
    } else if (!request && event.code === "wrong-passphrase") {
      effects.push({ type: "login", text: event.text });
    } else {
      noteIn(conversation ?? chat.shown, chat, "error", event.text);
      effects.push({ type: "announced", text: event.text });
    }
  },

  "password-needed"(chat, event, effects) {
    effects.push({ type: "password", isWrong: event.isWrong });
  },
});

function hear(chat, conversation, item, effects) {
  if (chat.ignored.has(item)) return;
  conversation.heard(item, conversation.key === chat.current && chat.isAttentive);
  effects.push({ type: "heard", conversation, item });
}
