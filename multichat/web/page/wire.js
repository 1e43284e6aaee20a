// The JSON protocol: events in, requests out.  Pure: no DOM.
//
// `parseEvent` trusts nothing: it refuses an event with a missing, wrong or oversized field, and
// every string that is shown has passed `clean`.  docs/protocol.md describes the fields.

import { clean } from "./text.js";

/** A line that is longer is dropped unread; the terminal client has the same limit. */
export const MAX_LINE_CHARACTERS = 1024 * 1024;

// A server of ours has at most 32 characters in a name; others may be more generous.
const MAX_NAME = 128;
const MAX_TOPIC = 1000;
const MAX_REASON = 1000;
const MAX_ID = 128;
const MAX_LIST = 10_000;

const text = (most) => (value) => (typeof value === "string" ? clean(value).slice(0, most) : undefined);
const name = (value) => (typeof value === "string" && value.length <= MAX_NAME ? clean(value) : undefined);
const id = (value) => (typeof value === "string" && value && value.length <= MAX_ID ? value : undefined);
const count = (value) => (Number.isSafeInteger(value) && value >= 0 ? value : undefined);
const flag = (value) => (typeof value === "boolean" ? value : undefined);
const seconds = (value) => (typeof value === "number" && value >= 0 ? Math.min(value, 1e6) : undefined);
const nullable = (parse) => (value) => (value === null ? null : parse(value));
const list = (parse) => (value) => {
  if (!Array.isArray(value)) return undefined;
  return value.slice(0, MAX_LIST).map(parse).filter((each) => each !== undefined);
};
const nonce = (value) => (Number.isSafeInteger(value) || id(value) !== undefined ? value : undefined);

/** A parser of objects: *fields* are needed, *optional* ones may be missing. */
function fieldsOf(fields, optional = {}) {
  return (value) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
    const parsed = {};
    for (const [key, parse] of Object.entries(fields)) {
      const field = Object.hasOwn(value, key) ? parse(value[key]) : undefined;
      if (field === undefined) return undefined;
      parsed[key] = field;
    }
    for (const [key, parse] of Object.entries(optional)) {
      const field = Object.hasOwn(value, key) ? parse(value[key]) : undefined;
      if (field !== undefined) parsed[key] = field;
    }
    return parsed;
  };
}

const roomState = fieldsOf({ members: count, last: nullable(id) }, { topic: text(MAX_TOPIC) });

/** Rooms by name, as a `Map`: a room may be called `__proto__`. */
function rooms(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  const found = new Map();
  for (const [key, state] of Object.entries(value).slice(0, MAX_LIST)) {
    const parsed = roomState(state);
    if (name(key) && parsed) found.set(name(key), parsed);
  }
  return found;
}

const said = fieldsOf(
  { id, time: text(64), room: name, client: count, name, text: text(Infinity) },
  { act: flag },
);

const PARSERS = new Map(
  Object.entries({
    welcome: fieldsOf(
      {
        client: count,
        name,
        room: name,
        members: count,
        limits: fieldsOf({ line: count, name: count }, { wait: seconds }),
        resumed: flag,
      },
      { last: nullable(id), session: text(MAX_ID), server: text(200), rooms, account: name },
    ),
    said,
    direct: fieldsOf({ client: count, name, text: text(Infinity) }, { time: text(64) }),
    accepted: fieldsOf({}, { id }),
    joined: fieldsOf(
      { client: count, name },
      { room: name, members: count, last: nullable(id), topic: text(MAX_TOPIC) },
    ),
    left: fieldsOf({ client: count, name, reason: text(MAX_REASON) }, { room: name, members: count }),
    renamed: fieldsOf({ client: count, old: name, name }),
    presence: fieldsOf({ joined: count, left: count, renamed: count, members: count }, { room: name }),
    missed: fieldsOf({ count }, { room: name }),
    members: fieldsOf({ room: name, members: list(fieldsOf({ client: count, name })) }, { person_in: name }),
    rooms: fieldsOf({ rooms: list(fieldsOf({ room: name, members: count })) }),
    history: fieldsOf({ messages: list(said), more: flag }, { missed: count, room: name }),
    "logged-in": fieldsOf({ name }),
    "logged-out": fieldsOf({ name }, { reason: text(MAX_REASON) }),
    topic: fieldsOf({ room: name, text: text(MAX_TOPIC) }, { client: count, name }),
    bans: fieldsOf({
      bans: list(fieldsOf({ what: text(MAX_NAME) }, { seconds, reason: text(MAX_REASON) })),
    }),
    notice: fieldsOf({ text: text(4000) }),
    pong: fieldsOf({}),
    error: fieldsOf({ code: text(64), text: text(2000) }, { holder: name, room: name }),
    goodbye: fieldsOf({ reason: text(MAX_REASON) }, { code: text(64), reconnect: flag, after: seconds }),
  }),
);

/** Return the event in *line*, or null if it is not valid, or of a type unknown to the page. */
export function parseEvent(line) {
  if (line.length > MAX_LINE_CHARACTERS || line[0] !== "{") return null;
  let value;
  try {
    value = JSON.parse(line);
  } catch {
    return null;
  }
  const parse = PARSERS.get(value.type);
  const event = parse && parse(value);
  if (!event) return null;
  event.type = value.type;
  if (nonce(value.nonce) !== undefined) event.nonce = value.nonce;
  return event;
}

/** Return *request* as a line, its `type` first. */
export function encodeRequest(request) {
  const { type, ...fields } = request;
  return JSON.stringify({ type, ...fields });
}

/** Return the line that changes a connection to JSON. */
export function encodeHello(hello) {
  return `/json ${JSON.stringify(hello)}`;
}

/** Return the time of a message in milliseconds; *otherwise* if it is not valid. */
export function timeOf(timestamp, otherwise) {
  const time = Date.parse(timestamp ?? "");
  return Number.isNaN(time) ? otherwise : time;
}
