// The state of the chat: who we are, our conversations, our requests.  Pure: no DOM, no I/O;
// `takeLines` returns the lines to send, and methods return effects for the page:
//
//   {type: "heard", conversation, item}   a new message of another client
//   {type: "told", text, isError}         a text for the status line
//   {type: "answered", purpose, event}    an answer to a request of a dialog, or its error
//   {type: "password", isWrong}, {type: "name", text}, {type: "opened", key}
//
// `events.js` carries out what the server sends.

import { mayHoldSecret, parseLine } from "./commands.js";
import { Conversation, makeItem } from "./conversation.js";
import { HANDLERS } from "./events.js";
import { Ignored } from "./ignored.js";
import { pendingItem } from "./items.js";
import { directKey, recipientOf, roomKey } from "./names.js";
import { Outbox } from "./outbox.js";
import { Session, STATES } from "./session.js";
import { utf8Bytes } from "./text.js";
import { runTyped } from "./typed.js";
import { encodeRequest } from "./wire.js";

const LOBBY = "lobby";

// How many messages of a private conversation survive a reload, and how many characters of all of
// them together: browsers keep five million, or nothing.
const KEPT_DIRECTS = 100;
const KEPT_CHARACTERS = 1_000_000;

const MAX_CONVERSATIONS = 200;

// Requests all messages of a room that was empty when we entered it.
const EVERYTHING = 2 ** 31 - 1;

const HISTORY_PAGE = 100;

export class Chat {
  /** *saved* is what `keep` returned before a reload, or null. */
  constructor({ saved = null, prefix, random = Math.random, now = Date.now, isPrivate = true }) {
    this.isPrivate = isPrivate; // the network cannot read it: a passphrase may be sent
    this.me = { client: null, name: saved?.name ?? "", account: saved?.account ?? "" };
    this.now = now;
    this.session = new Session({ token: saved?.token ?? "", random });
    this.outbox = new Outbox(prefix, saved?.outbox ?? []);
    this.conversations = new Map();
    this.current = null;
    this.isAttentive = false;
    this.lastSender = null;
    this.ignored = new Ignored(saved?.ignored);
    this.credentials = null; // for the next hello only
    this.items = new Map(); // nonce → {conversation, item}, of pending messages
    this.requests = new Map(); // nonce → {purpose, …}
    this.lines = [];
    for (const each of saved?.rooms?.length ? saved.rooms : [{ name: LOBBY }]) {
      const conversation = this.room(each.name);
      conversation.read = each.read ?? null;
      conversation.draft = each.draft ?? "";
    }
    for (const each of saved?.directs ?? []) this._restoreDirect(each);
    for (const entry of this.outbox.pending) pendingItem(this, entry);
    this.current = this.conversations.has(saved?.current) ? saved.current : [...this.conversations.keys()][0];
  }

  get isOnline() {
    return this.session.state === STATES.online;
  }

  get shown() {
    return this.conversations.get(this.current);
  }

  get rooms() {
    return [...this.conversations.values()].filter((each) => each.kind === "room");
  }

  get directs() {
    return [...this.conversations.values()].filter((each) => each.kind === "direct");
  }

  /** Return the conversation with the room *name*, a new one if there is none. */
  room(name) {
    return this._open("room", roomKey(name), name);
  }

  /** Return the conversation with the person *name*, a new one if there is none. */
  direct(name) {
    return this._open("direct", directKey(name), name);
  }

  _open(kind, key, title) {
    let conversation = this.conversations.get(key);
    if (!conversation) {
      if (this.conversations.size >= MAX_CONVERSATIONS) this._closeOldestDirect();
      conversation = new Conversation(kind, key, title);
      this.conversations.set(key, conversation);
    }
    return conversation;
  }

  /** Close a private conversation, preferably one in which we have never written. */
  _closeOldestDirect() {
    const others = this.directs.filter((each) => each.key !== this.current);
    const oldest = others.find((each) => !each.isAnswered) ?? others[0];
    if (oldest) this.conversations.delete(oldest.key);
  }

  /** What survives a reload. */
  keep() {
    const share = KEPT_CHARACTERS / Math.max(1, this.directs.length);
    return {
      token: this.session.token,
      name: this.me.name,
      account: this.me.account,
      current: this.current,
      ignored: this.ignored.names,
      outbox: this.outbox.pending.map(({ request, time, isTried }) => ({ request, time, isTried })),
      rooms: this.rooms.map((each) => ({ name: each.title, read: each.read, draft: keptDraft(each) })),
      directs: this.directs.map((each) => ({
        name: each.title,
        client: each.client,
        draft: keptDraft(each),
        unread: each.unread,
        items: keptItems(each, share),
      })),
    };
  }

  _restoreDirect({ name, client, draft, unread, items }) {
    const conversation = this.direct(name);
    Object.assign(conversation, { client, draft });
    for (const each of items) conversation.append(makeItem("said", each.time, { ...each, state: "" }));
    for (const item of conversation.items.slice(-unread || Infinity)) conversation.heard(item, false);
  }

  // The connection -------------------------------------------------------------------------------

  /** The hello of a connection: our name, and our rooms from where we have them. */
  hello() {
    const rooms = this.rooms.map((each) => [each.title, startOf(each)]);
    const hello = { rooms: Object.fromEntries(rooms) };
    if (this.credentials) hello.login = this.credentials;
    else if (this.me.name && typeof recipientOf(this.me.name) === "string") hello.name = this.me.name;
    return hello;
  }

  opened(seconds) {
    this.lines = [];
    return this.session.opened(this.hello(), seconds);
  }

  /** A WebSocket message came: return the effects, lines to send, and whether to close. */
  received(message, seconds) {
    const { events, lines, close } = this.session.received(message, seconds);
    const effects = [];
    for (const event of events) this._apply(event, effects);
    this.pump();
    return { effects, lines: [...lines, ...this.takeLines()], close };
  }

  _apply(event, effects) {
    const request = event.nonce === undefined ? undefined : this.requests.get(event.nonce);
    if (request) this.requests.delete(event.nonce);
    HANDLERS[event.type]?.(this, event, effects, request);
    if (request?.dialog) effects.push({ type: "answered", purpose: request.purpose, event });
  }

  closed(seconds) {
    this.session.closed(seconds);
    this.outbox.reset();
    const asked = [...this.requests.values()].filter((each) => each.dialog);
    const isTyped = [...this.requests.values()].some((each) => each.isTyped && !each.dialog);
    this.requests.clear();
    this.lines = [];
    for (const each of this.conversations.values()) {
      each.isLoading = false;
      each.isIn = false;
      each.isKnown = false;
    }
    const text = "The connection is lost. Please try again.";
    const event = { type: "error", code: "offline", text };
    const effects = asked.map(({ purpose }) => ({ type: "answered", purpose, event }));
    if (isTyped) effects.push({ type: "told", text: "The connection was lost before your command was answered. Please try again.", isError: true });
    return effects;
  }

  /** Hand the messages that may be sent now to the connection. */
  pump() {
    if (!this.isOnline) return;
    for (const request of this.outbox.take()) this.lines.push(encodeRequest(request));
  }

  takeLines() {
    return this.lines.splice(0);
  }

  /** Ask the server; return false if there is no connection. */
  ask(request, purpose, more = {}) {
    if (!this.isOnline) return false;
    const nonce = this.outbox.nonce();
    this.requests.set(nonce, { purpose, ...more });
    this.lines.push(encodeRequest({ ...request, nonce }));
    return true;
  }

  // Actions of the user --------------------------------------------------------------------------

  /** Carry out a typed line in *conversation*: a message or a command. */
  typed(conversation, line) {
    return runTyped(this, conversation, parseLine(line, this.me.name));
  }

  /** Send a `say`, `act` or `direct`; return what is wrong with it, or an empty string. */
  send(conversation, request) {
    if (this.outbox.isFull) return "Too many messages wait to be sent. Please wait for the connection.";
    let full = request;
    if (request.type === "direct") {
      conversation = this.direct(typeof request.to === "number" ? `Client ${request.to}` : request.to);
    } else if (conversation.kind === "direct") {
      const text = request.type === "act" ? `* ${request.text}` : request.text;
      full = { type: "direct", to: recipientOf(conversation.title), text };
    } else {
      full = { ...request, room: conversation.title };
    }
    // A nonce is longer than nothing: leave room for it.
    if (utf8Bytes(encodeRequest(full)) + 64 > this.session.limits.line) return "This message is too long for the server.";
    const item = pendingItem(this, this.outbox.add(full, this.now()));
    conversation.divider = null;
    this.pump();
    return item ? "" : "This cannot be sent.";
  }

  /** Send a message that failed once more, as a new one. */
  retry(conversation, item) {
    const effects = runTyped(this, conversation, item.request);
    if (effects.length === 0) conversation.remove(item);
    return effects;
  }

  /** Show *key*: its messages count as read once the user is looking. */
  show(key) {
    if (!this.conversations.has(key)) return;
    if (this.shown && this.current !== key && this.shown.unread === 0) this.shown.divider = null;
    this.current = key;
    const conversation = this.shown;
    if (conversation.kind === "room" && conversation.isIn) this.ask({ type: "who", room: conversation.title }, "members");
  }

  /** Whether the user is looking at the end of the shown conversation. */
  attend(isAttentive) {
    this.isAttentive = isAttentive;
    if (isAttentive && this.shown?.unread) this.shown.markRead();
  }

  enter(room) {
    return this.ask({ type: "enter", room }, "enter", { isTyped: true });
  }

  /** Leave a room, or close a private conversation. */
  leave(conversation) {
    if (conversation.kind === "direct" || !conversation.isIn) {
      this.forget(conversation);
      return [];
    }
    this.ask({ type: "exit", room: conversation.title }, "exit", { key: conversation.key, isTyped: true });
    return [];
  }

  forget(conversation) {
    if (this.conversations.size === 1) {
      conversation.isIn = false; // a conversation must be shown
      return;
    }
    this.conversations.delete(conversation.key);
    if (this.current === conversation.key) this.current = null;
    if (!this.current) this.show([...this.conversations.keys()][0]);
  }

  /** Request older messages of a room; return whether a request was sent. */
  loadOlder(conversation) {
    if (conversation.isLoading || conversation.kind !== "room") return false;
    if (!conversation.isFresh && !conversation.hasMore) return false;
    const request = { type: "history", limit: HISTORY_PAGE, room: conversation.title };
    const before = conversation.isFresh ? null : conversation.oldestId;
    conversation.isLoading = this.ask(before ? { ...request, before } : request, "history", { key: conversation.key });
    return conversation.isLoading;
  }
}

/** The last messages of a private conversation, with at most that number of *characters*. */
function keptItems({ items }, characters) {
  const kept = [];
  let left = characters;
  for (let at = items.length - 1; at >= 0 && kept.length < KEPT_DIRECTS; at--) {
    const { kind, state, time, client, name, text, isOwn } = items[at];
    if (kind !== "said" || state !== "") continue;
    left -= text.length;
    if (left < 0) break;
    kept.push({ time, client, name, text, isOwn });
  }
  return kept.reverse();
}

/** Where the replay of a room starts; one of which we have no messages gets its history instead. */
function startOf({ since, isFresh }) {
  if (since !== null) return { since };
  return isFresh ? {} : { replay: EVERYTHING };
}

/** The part of an unfinished line that is kept. */
function keptDraft({ draft }) {
  return mayHoldSecret(draft) ? "" : draft;
}
