// Carries out a typed line: messages are sent, commands run here or requested from the server.
// Pure: no DOM.

import { NOT_PRIVATE } from "./commands.js";
import { recipientOf, roomKey } from "./names.js";

/** Carry out *request*, as `parseLine` returns it, in *conversation*; return the effects. */
export function runTyped(chat, conversation, request) {
  const effects = [];
  if (request.local) return runLocal(chat, conversation, request);
  if (request.passphrase !== undefined && !chat.isPrivate) return [{ type: "told", text: NOT_PRIVATE, isError: true }];
  if (["say", "act", "direct"].includes(request.type)) {
    const problem = chat.send(conversation, request);
    if (problem) effects.push({ type: "told", text: problem, isError: true });
    return effects;
  }
  const named = { who: request.room || conversation.title, topic: conversation.title };
  if (Object.hasOwn(named, request.type)) {
    if (conversation.kind !== "room" && !request.room) {
      return [{ type: "told", text: "This is about rooms: go to one first.", isError: true }];
    }
    request = { ...request, room: named[request.type] };
  }
  if (!chat.ask(request, request.type, { key: conversation.key, isTyped: true })) {
    effects.push({ type: "told", text: "You are offline; this cannot be done now.", isError: true });
  }
  return effects;
}

function runLocal(chat, conversation, request) {
  switch (request.local) {
    case "error":
      return [{ type: "told", text: request.text, isError: true }];
    case "reply":
      if (!chat.lastSender) return [{ type: "told", text: "Nobody has sent you a private message.", isError: true }];
      return runTyped(chat, conversation, { type: "direct", to: recipientOf(chat.lastSender), text: request.text });
    case "part": {
      const room = request.room ? chat.conversations.get(roomKey(request.room)) : conversation;
      return room ? chat.leave(room) : [{ type: "told", text: `You are not in ${request.room}.`, isError: true }];
    }
    case "ignore":
      return [{ type: "told", text: toggleIgnored(chat, request.name), isError: false }];
    case "clear":
      conversation.clear();
      return [];
    case "ping":
      return [{ type: "told", text: chat.isOnline ? "You are connected." : "You are offline.", isError: false }];
    default:
      return [{ type: "dialog", name: request.local }];
  }
}

/** Hide the messages of *name*, or show them again; return the text that says so. */
function toggleIgnored(chat, name) {
  if (!chat.ignored.toggle(name)) return `You see the messages of ${name} again.`;
  return `The messages of ${name} are hidden in this tab. /ignore ${name} shows them again.`;
}
