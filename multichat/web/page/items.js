// Messages and notices as items of a conversation.  Pure: no DOM.

import { makeItem } from "./conversation.js";
import { mentions } from "./text.js";
import { timeOf } from "./wire.js";

/** Return the item of a `said`. */
export function saidItem(chat, event) {
  const isOwn = event.client === chat.me.client;
  return {
    key: `s${event.id}`,
    version: 0,
    kind: "said",
    id: event.id,
    time: timeOf(event.time, chat.now()),
    client: event.client,
    name: event.name,
    text: event.text,
    isAct: event.act === true,
    isOwn,
    isMention: !isOwn && mentions(event.text, chat.me.name),
    state: "",
  };
}

/** Show a message of the outbox in its conversation; return its item. */
export function pendingItem(chat, entry) {
  const { request } = entry;
  const conversation =
    request.type === "direct"
      ? chat.direct(typeof request.to === "number" ? `Client ${request.to}` : request.to)
      : chat.room(request.room);
  const item = makeItem("said", entry.time, {
    client: chat.me.client,
    name: chat.me.name,
    text: request.text,
    isAct: request.type === "act",
    isOwn: true,
    isMention: false,
    state: "pending",
    request,
  });
  conversation.insert(item);
  chat.items.set(request.nonce, { conversation, item });
  return item;
}

/** Put a notice, an error or missed messages into *conversation*, if there is one. */
export function noteIn(conversation, chat, kind, text) {
  conversation?.append(makeItem(kind, chat.now(), { text }));
}

/** Return the item of a private message to us. */
export function directItem(chat, event) {
  return makeItem("said", timeOf(event.time, chat.now()), {
    client: event.client,
    name: event.name,
    text: event.text,
    isOwn: false,
    isMention: true,
    state: "",
  });
}
