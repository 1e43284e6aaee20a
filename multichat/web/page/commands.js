// Parses a typed line: a message, a command, or a line that only looks like a command; and completes
// commands and names.  Pure: no DOM.
//
// The commands are those of the terminal client.  A command has `parse`, which returns a request,
// `{local: WHAT, …}` for what the page does itself, or null if its arguments are not valid.

import { fold, recipientOf } from "./names.js";

const word = (make) => (rest) => (rest.trim() ? make(rest.trim()) : null);
const whole = (make) => (rest) => (rest ? make(rest) : null);
const alone = (make) => (rest) => (rest.trim() ? null : make());
const room = (text) => text.trim().replace(/^#+/u, "");

/**
 * The commands in the order of the help: `help` says what everybody can do, `operators` what only
 * they can; one without either is not listed.
 */
export const COMMANDS = Object.freeze([
  { name: "/name", aliases: ["/nick"], arguments: "NAME", help: "change your name", parse: word((name) => ({ type: "name", name })) },
  { name: "/me", arguments: "TEXT", help: "say what you do: * NAME TEXT", parse: whole((text) => ({ type: "act", text })) },
  { name: "/msg", aliases: ["/m", "/w", "/tell", "/query", "/whisper"], arguments: "WHO TEXT", help: "tell one person", completes: "name", parse: parseDirect },
  { name: "/r", aliases: ["/reply"], arguments: "TEXT", help: "answer your last private message", parse: whole((text) => ({ local: "reply", text })) },
  { name: "/who", aliases: ["/names"], arguments: "[ROOM]", help: "list who is here", completes: "room", parse: (rest) => ({ type: "who", room: room(rest) }) },
  { name: "/rooms", aliases: ["/list"], help: "browse the rooms", parse: alone(() => ({ local: "rooms" })) },
  { name: "/join", aliases: ["/j"], arguments: "ROOM", help: "enter another room", completes: "room", parse: word((rest) => ({ type: "enter", room: room(rest) })) },
  { name: "/part", aliases: ["/leave"], arguments: "[ROOM]", help: "leave this room, or ROOM", completes: "room", parse: (rest) => ({ local: "part", room: room(rest) }) },
  { name: "/topic", arguments: "[TEXT]", help: "show the topic; an operator sets it", parse: (rest) => (rest.trim() ? { type: "topic", text: rest.trim() } : { type: "topic" }) },
  { name: "/help", help: "show the commands and keys", parse: () => ({ local: "help" }) },
  { name: "/register", arguments: "[PASSPHRASE]", help: "make your name your own", parse: (rest) => (rest ? { type: "register", passphrase: rest } : { local: "register" }) },
  { name: "/login", arguments: "[NAME PASSPHRASE]", help: "take the name that is yours", parse: parseLogin },
  { name: "/logout", help: "give up the name that is yours", parse: alone(() => ({ type: "logout" })) },
  { name: "/passphrase", arguments: "[NEW]", help: "change your passphrase", parse: (rest) => (rest ? { type: "passphrase", passphrase: rest } : { local: "passphrase" }) },
  { name: "/ignore", arguments: "NAME", help: "hide the messages of NAME, or show them again", completes: "name", parse: word((name) => ({ local: "ignore", name: name.replace(/^@/u, "") })) },
  { name: "/clear", help: "hide the messages above", parse: alone(() => ({ local: "clear" })) },
  { name: "/quit", aliases: ["/exit"], help: "leave the chat", parse: alone(() => ({ type: "quit" })) },
  { name: "/say", arguments: "TEXT", parse: whole((text) => ({ type: "say", text })) },
  { name: "/ping", parse: () => ({ local: "ping" }) },
  { name: "/kick", arguments: "WHO [REASON]", operators: "disconnect somebody", completes: "name", parse: word((rest) => target("kick", "who", rest, "reason")) },
  { name: "/ban", arguments: "WHAT [TIME] [REASON]", operators: "disconnect and keep out a name or address, for 10m, 2h, 7d or for ever", completes: "name", parse: word(parseBan) },
  { name: "/unban", arguments: "WHAT", operators: "lift a ban", parse: word((what) => ({ type: "unban", what })) },
  { name: "/bans", operators: "list the bans", parse: alone(() => ({ type: "bans" })) },
  { name: "/announce", arguments: "TEXT", operators: "tell everybody, in all rooms", parse: word((text) => ({ type: "announce", text })) },
]);

const BY_NAME = new Map(COMMANDS.flatMap((each) => [each.name, ...(each.aliases ?? [])].map((name) => [name, each])));

const SECRET = /^\/(?:register|login|passphrase|auth)/iu;
// How those commands begin when they are mistyped, and the ones of other chats.
const LIKE_SECRET = /^\/\s*(?:l|r|pa|au|id|ni)/iu;
// The same without their slash.
const NO_SLASH = /^\s*(login|register|passphrase|auth)\s+(\S.*)$/isu;
const MIN_PASSPHRASE_CHARACTERS = 8;

/** The error shown instead of sending a passphrase over a connection that others can read. */
export const NOT_PRIVATE = "Not sent: passphrases are for pages that were opened with https, or at localhost. Ask the operator for such an address.";

/** Return how *command* is typed. */
export function usage(command) {
  return command.arguments ? `${command.name} ${command.arguments}` : command.name;
}

/** Whether a line of *text* may hold a passphrase, also after a mistyped command: it is not kept. */
export function mayHoldSecret(text) {
  return text.split(/[\r\n]/u).some((line) => {
    if (NO_SLASH.test(line)) return true;
    const [, name] = /^\s*(\/\s*\S*)/u.exec(line) ?? [];
    if (name === undefined) return false;
    return (BY_NAME.has(name.toLowerCase()) ? SECRET : LIKE_SECRET).test(name);
  });
}

/**
 * Return the command with a passphrase that *line* would be with a slash, or an empty string.
 *
 * As in the terminal client: `login alice PASSPHRASE` is one if it is too long for a remark of three
 * words, or names *ownName*; `register soon` is not.
 */
function withoutSlash(line, ownName) {
  const [, word, rest] = NO_SLASH.exec(line) ?? [];
  const name = `/${word ?? ""}`.toLowerCase();
  if (!BY_NAME.has(name)) return "";
  const words = rest.trim().split(/\s+/u);
  const takesName = name === "/login";
  const isOwn = takesName && words.length > 1 && fold(words[0]) === fold(ownName);
  const isLong = words.length === (takesName ? 2 : 1) && [...words.at(-1)].length >= MIN_PASSPHRASE_CHARACTERS;
  return isOwn || isLong ? name : "";
}

/**
 * Return the request that *line* makes, or `{local: "error", text}` with what is wrong; *ownName* is
 * the name of who has typed it.
 */
export function parseLine(line, ownName = "") {
  const disguised = /^\s+(\/\w+)/u.exec(line);
  if (disguised && BY_NAME.has(disguised[1].toLowerCase())) {
    const name = disguised[1];
    return { local: "error", text: `Not sent, because it looks like ${name}: remove the space to run it, or type //${name.slice(1)} to say it.` };
  }
  const missing = withoutSlash(line, ownName);
  if (missing) {
    return { local: "error", text: `Not sent, because it looks like ${missing}: put / in front to run it, or /say and a space to say it.` };
  }
  if (!line.startsWith("/")) return { type: "say", text: line };
  if (line.startsWith("//")) return { type: "say", text: line.slice(1) };
  const [, name, rest] = /^(\/\S*)\s?(.*)$/su.exec(line);
  const command = BY_NAME.get(name.toLowerCase());
  if (!command) {
    return { local: "error", text: `There is no command ${name.slice(0, 40)}; /help lists them. Start with // to send a line that starts with /.` };
  }
  return command.parse(rest) ?? { local: "error", text: `Type ${usage(command)}.` };
}

function target(type, key, rest, reasonKey) {
  const [, who, reason] = /^((?:client\s+)?\S+)\s*(.*)$/isu.exec(rest);
  const number = /^(?:client\s+)?(\d+)$/iu.exec(who);
  const request = { type, [key]: number ? Number(number[1]) : who.replace(/^@/u, "") };
  return reason ? { ...request, [reasonKey]: reason } : request;
}

function parseBan(rest) {
  const { type, what, reason = "" } = target("ban", "what", rest, "reason");
  const time = /^(\d+[smhdw])(?:\s+(.*))?$/isu.exec(reason);
  if (time) return { type, what, time: time[1], reason: time[2] ?? "" };
  return { type, what, reason };
}

function parseDirect(rest) {
  const found = /^\s*@?(client\s+\d+|\S+)\s(.+)$/isu.exec(rest);
  if (!found) return null;
  const who = found[1].replace(/(?<=.)[:,]+$/u, "");
  const number = /^(?:client\s+)?(\d+)$/iu.exec(who);
  const to = number ? Number(number[1]) : who;
  return { type: "direct", to, text: found[2] };
}

function parseLogin(rest) {
  if (!rest.trim()) return { local: "login" };
  const found = /^\s*(\S+) (.+)$/su.exec(rest);
  return found ? { type: "login", name: found[1], passphrase: found[2] } : null;
}

/**
 * Return what can stand at the cursor, at most eight: `{text, help, start}`; *start* is where the
 * completed word begins in *line*.  *names* are the members, *rooms* the rooms that are known.
 */
export function completions(line, cursor, { names = [], rooms = [] }) {
  const before = line.slice(0, cursor);
  if (/^\/\w*$/u.test(before)) {
    return COMMANDS.filter((each) => each.help && each.name.startsWith(before.toLowerCase()))
      .slice(0, 8)
      .map((each) => ({ text: each.name, shown: usage(each), help: each.help, start: 0 }));
  }
  const argument = /^(\/\w+)\s+(@?)(\S*)$/u.exec(before);
  const kind = argument && BY_NAME.get(argument[1].toLowerCase())?.completes;
  if (kind) {
    const start = cursor - argument[3].length;
    return matching(kind === "room" ? rooms : names, argument[3], start, "");
  }
  const mention = /(?:^|\s)@(\S{0,32})$/u.exec(before);
  return mention ? matching(names, mention[1], cursor - mention[1].length - 1, "@") : [];
}

function matching(all, typed, start, prefix) {
  const sought = fold(typed);
  return all
    .filter((name) => fold(name).startsWith(sought) && typeof recipientOf(name) === "string")
    .slice(0, 8)
    .map((name) => ({ text: prefix + name, shown: prefix + name, help: "", start }));
}
