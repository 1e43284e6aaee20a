// One conversation, with a room or with one person: its messages in order, what is unread, and the
// members.  Pure: no DOM.
//
// Messages of a room are in the order of their ids, each once, whichever way they came: live, by
// replay, by history or as the acknowledgement of our own.  Our pending messages are at the end.
// An item that changes gets another `version`, so that the log draws it again.

/** Above this, older messages are dropped from memory, and come back from the server's history. */
const MAX_ITEMS = 10_000;

// The number that is dropped at once, because dropping moves the rest.
const DROPPED_ITEMS = 1000;

// How many of the clients that join and leave between two messages are named.
const MAX_CHANGES = 200;

let serial = 0;

/** Return an item that is not a message: a notice, an error, missed messages. */
export function makeItem(kind, time, fields) {
  return { key: `i${++serial}`, version: 0, kind, time, ...fields };
}

export class Conversation {
  /** *kind* is "room" or "direct"; *key* is unique, *title* is the name to show. */
  constructor(kind, key, title) {
    this.kind = kind;
    this.key = key;
    this.title = title;
    this.topic = "";
    this.items = [];
    this.members = new Map(); // client → name
    this.memberCount = 0;
    this.client = null; // the other's number, in a direct conversation
    this.isKnown = false; // the other has written to us in this connection
    this.isIn = false; // we have entered it
    this.isFresh = kind === "room"; // its history was not loaded
    this.isLoading = false;
    this.hasMore = false; // there are older messages on the server
    this.last = null; // the id of the room's last message when we entered it
    this.since = null; // the id after which the server is to replay
    this.unread = 0;
    this.mentions = 0;
    this.divider = null; // the first unread item
    this.read = null; // the id up to which everything is read
    this.draft = "";
    this.isHeld = false; // the user reads old messages: keep them
    this._ids = new Set();
  }

  /** The first message of a room, before which the history is requested; null if there is none. */
  get oldestId() {
    return this.items.find((item) => item.id)?.id ?? null;
  }

  get newestId() {
    return this.items.findLast((item) => item.id)?.id ?? null;
  }

  /** Whether we have written here, or are about to. */
  get isAnswered() {
    return this.draft !== "" || this.items.some((item) => item.isOwn);
  }

  /** Put a message with an id in its place; return whether it is new. */
  insert(item) {
    if (item.id && this._ids.has(item.id)) return false;
    if (item.id) this._ids.add(item.id);
    this.items.splice(this._placeOf(item), 0, item);
    this._trim();
    return true;
  }

  _placeOf(item) {
    const { items } = this;
    let place = items.length;
    for (let at = items.length - 1; at >= 0; at--) {
      const other = items[at];
      if (other.state === "pending") {
        if (item.state !== "pending" && place === at + 1) place = at;
      } else if (!item.id) {
        break;
      } else if (other.id) {
        if (other.id < item.id) break;
        place = at;
      }
    }
    return place;
  }

  /** Put anything else at the end, before what is pending. */
  append(item) {
    this.items.splice(this._placeOf(item), 0, item);
    this._trim();
  }

  /** Add a page of the history: older messages, or the latest ones of a fresh room. */
  addPage(page) {
    const fresh = page.filter((item) => !this._ids.has(item.id));
    const first = this.oldestId;
    if (first !== null && fresh.length > 0 && fresh.at(-1).id < first) {
      for (const item of fresh) this._ids.add(item.id);
      this.items.unshift(...fresh);
    } else {
      for (const item of fresh) this.insert(item);
    }
    return fresh;
  }

  /** Remove an item, for instance one that was not sent. */
  remove(item) {
    const at = this.items.indexOf(item);
    if (at >= 0) this.items.splice(at, 1);
    if (item.id) this._ids.delete(item.id);
    if (this.divider === item) this.divider = null;
  }

  /** Our message has its *id* in the room (null if private): it takes its place in the order. */
  settle(item, id) {
    const at = this.items.indexOf(item);
    if (at < 0) return;
    item.version += 1;
    item.state = "";
    if (id === null) return;
    if (this._ids.has(id)) this.remove(this.items.find((other) => other.id === id));
    this.items.splice(this.items.indexOf(item), 1);
    item.id = id;
    this.insert(item);
  }

  fail(item, reason) {
    item.version += 1;
    item.state = "failed";
    item.error = reason;
  }

  /** A message of another client came: count it, unless it is seen at once. */
  heard(item, isSeen) {
    if (isSeen) {
      if (item.id) this.read = item.id;
      return;
    }
    if (this.unread === 0) this.divider = item;
    this.unread += 1;
    if (item.isMention || this.kind === "direct") this.mentions += 1;
  }

  /** Everything is read.  The line above the first unread message stays until we show another. */
  markRead() {
    this.unread = 0;
    this.mentions = 0;
    this.read = this.newestId ?? this.read;
  }

  /** After a reload: what is later than the message that was read last, `read`, is unread again. */
  countUnread(me) {
    const since = this.read;
    this.unread = this.mentions = 0;
    for (const item of this.items) {
      if (item.id && item.id > since && item.client !== me) this.heard(item, false);
    }
  }

  /** Hide everything but what is not sent yet, until the page is loaded again. */
  clear() {
    this.items = this.items.filter((item) => item.state === "pending");
    this.hasMore = false;
    this.divider = null;
  }

  /** Forget the messages: the server has another history now.  What is not sent stays. */
  reset() {
    this.items = this.items.filter((item) => item.state === "pending" || item.state === "failed");
    this._ids.clear();
    this.since = this.last;
    this.read = null;
    this.divider = null;
    this.unread = 0;
    this.mentions = 0;
    this.isFresh = true;
  }

  /** A client joined, left or changed its name: one item for all changes between two messages. */
  changed(time, change) {
    let last = this.items.findLast((item) => item.state !== "pending");
    if (last?.kind !== "presence" || last.changes.size >= MAX_CHANGES) {
      last = makeItem("presence", time, { changes: new Map(), counts: { joined: 0, left: 0, renamed: 0 } });
      this.append(last);
    }
    last.version += 1;
    last.time = time;
    if (change.type === "presence") {
      for (const kind of Object.keys(last.counts)) last.counts[kind] += change[kind];
      return;
    }
    const before = last.changes.get(change.client);
    const first = before?.first ?? change.type;
    const old = before?.old ?? change.old ?? null;
    const now = change.type === "renamed" ? (before?.now ?? "renamed") : change.type;
    last.changes.set(change.client, { first, now, old, name: change.name });
  }

  _trim() {
    const most = this.isHeld ? 2 * MAX_ITEMS : MAX_ITEMS;
    if (this.items.length < most + DROPPED_ITEMS) return;
    for (const item of this.items.splice(0, this.items.length - most)) {
      if (item.id) this._ids.delete(item.id);
      if (this.divider === item) this.divider = null;
    }
    this.hasMore = this.kind === "room";
  }
}

/** Return the text of a `presence` item; empty if the changes have cancelled each other. */
export function describeChanges({ changes, counts }) {
  const groups = { joined: [], left: [], visited: [], returned: [] };
  const parts = [];
  for (const { first, now, old, name } of changes.values()) {
    if (now === "renamed") {
      if (old !== name) parts.push(`${old} is now ${name}`);
    } else if (first === "left") groups[now === "left" ? "left" : "returned"].push(name);
    else if (now === "joined") groups.joined.push(name);
    else groups[first === "renamed" ? "left" : "visited"].push(name);
  }
  const told = [
    [groups.joined, counts.joined, "joined"],
    [groups.left, counts.left, "left"],
    [groups.visited, 0, "came and went"],
    [groups.returned, 0, "came back"],
  ];
  for (const [names, more, verb] of told) {
    if (names.length + more > 0) parts.unshift(`${listed(names, more)} ${verb}`);
  }
  if (counts.renamed > 0) parts.push(`${counts.renamed} changed their names`);
  return parts.slice(0, 12).join(" · ");
}

/** Return "alice, bob and 3 others". */
function listed(names, more) {
  const shown = names.slice(0, 3);
  const others = names.length - shown.length + more;
  if (shown.length === 0) return `${others} ${others === 1 ? "person" : "people"}`;
  if (others > 0) return `${shown.join(", ")} and ${others} ${others === 1 ? "other" : "others"}`;
  return shown.length === 1 ? shown[0] : `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}`;
}
