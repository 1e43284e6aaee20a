// The lists beside the log: rooms, private conversations, the members of the room, and who we are.
//
// A list is drawn again only if what it shows has changed, and keeps the keyboard's focus.

import { byId, element, icon, ICONS, nameElement } from "./dom.js";
import { hueOf, initialsOf } from "./names.js";

// How many of a room's members are listed.
const MAX_LISTED = 300;

const STATUS = Object.freeze({
  idle: "Not connected",
  connecting: "Connecting…",
  online: "Connected",
  waiting: "Offline",
  password: "Password needed",
  ended: "Disconnected",
});

export class Sidebar {
  /** *show*, *leave* take the key of a conversation, *write* a name. */
  constructor({ show, leave, write }) {
    this._actions = { show, leave, write };
    this._drawn = new Map();
  }

  draw(chat) {
    this._drawList("rooms", chat.rooms, chat);
    this._drawList("directs", chat.directs, chat);
    byId("directs-title").hidden = chat.directs.length === 0;
    this._drawMe(chat);
    this._drawPeople(chat);
    const others = [...chat.conversations.values()].filter((each) => each.key !== chat.current);
    const elsewhere = others.reduce((sum, each) => sum + each.unread, 0);
    const badge = byId("menu-badge");
    badge.hidden = elsewhere === 0;
    badge.classList.toggle("mentioned", others.some((each) => each.mentions > 0));
    byId("menu").setAttribute("aria-label", elsewhere > 0 ? `Conversations, ${elsewhere} unread` : "Conversations");
  }

  /** Draw *id* if *signature* is not what it shows. */
  _once(id, signature, draw) {
    if (this._drawn.get(id) === signature) return;
    this._drawn.set(id, signature);
    const list = byId(id);
    const active = document.activeElement;
    const focused = list.contains(active) ? (active.dataset.key ?? null) : null;
    draw(list);
    if (focused !== null) {
      const again = [...list.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused);
      (again ?? list.querySelector("button"))?.focus();
    }
  }

  _drawList(id, conversations, chat) {
    const canLeave = chat.conversations.size > 1;
    const shown = conversations.map((each) => [each.key, each.title, each.unread, each.mentions, each.isIn]);
    const signature = JSON.stringify([shown, chat.current, canLeave, chat.isOnline]);
    this._once(id, signature, (list) => {
      list.replaceChildren(...conversations.map((each) => this._entry(each, chat, canLeave)));
    });
  }

  _entry(conversation, chat, canLeave) {
    const { key, title, kind, unread, mentions } = conversation;
    const isShown = key === chat.current;
    const isOut = kind === "room" && chat.isOnline && !conversation.isIn;
    const sign =
      kind === "room"
        ? element("span", { className: "sign", "aria-hidden": "true" }, "#")
        : element("span", { className: `avatar small hue-${hueOf(title)}`, "aria-hidden": "true" }, initialsOf(title));
    const many = unread > 99 ? "99+" : String(unread);
    const spoken = `, ${unread} unread${mentions > 0 ? `, ${mentions} for you` : ""}`;
    const badge = unread === 0 ? null : element(
      "span",
      { className: `badge${mentions > 0 ? " mentioned" : ""}` },
      element("span", { "aria-hidden": "true" }, mentions > 0 && kind === "room" ? `@${many}` : many),
      element("span", { className: "hidden" }, spoken),
    );
    const open = element(
      "button",
      { type: "button", className: `open${unread > 0 ? " unread" : ""}${isOut ? " out" : ""}`, "aria-current": isShown ? "page" : null, onclick: () => this._actions.show(key) },
      sign,
      nameElement(title, "title"),
      isOut ? element("span", { className: "hidden" }, ", not entered") : null,
      badge,
    );
    open.dataset.key = key;
    const leave = element(
      "button",
      { type: "button", className: "leave quiet", "aria-label": `${kind === "room" ? "Leave" : "Close"} ${title}`, title: kind === "room" ? "Leave" : "Close", onclick: () => this._actions.leave(key) },
      icon(ICONS.leave),
    );
    leave.dataset.key = `leave ${key}`;
    return element("li", { className: isShown ? "shown" : "" }, open, canLeave ? leave : null);
  }

  _drawMe({ me, session }) {
    const { state } = session;
    this._once("me", JSON.stringify([me.name, me.account, state]), (button) => {
      const name = me.name || "You";
      const status = state === "online" && me.account ? "Logged in" : STATUS[state];
      button.replaceChildren(
        element("span", { className: `avatar hue-${hueOf(name)}`, "aria-hidden": "true" }, initialsOf(name)),
        element("span", { className: "who" }, nameElement(name, "title"), element("span", { className: `state ${state}` }, status)),
      );
    });
  }

  _drawPeople({ shown, me, isOnline }) {
    const isRoom = shown.kind === "room";
    byId("people-toggle").hidden = !isRoom;
    byId("app").classList.toggle("without-people", !isRoom);
    const count = String(shown.memberCount);
    if (byId("people-count").textContent !== count) byId("people-count").textContent = count;
    byId("people-toggle").setAttribute("aria-label", `People: ${count}`);
    if (!isRoom) return;
    const names = [...shown.members].slice(0, MAX_LISTED);
    const signature = JSON.stringify([shown.key, names, shown.memberCount, me.client, isOnline]);
    this._once("people-list", signature, (list) => {
      const sorted = names.sort((one, other) => one[1].localeCompare(other[1], undefined, { numeric: true }));
      const more = shown.memberCount - sorted.length;
      list.replaceChildren(
        ...sorted.map(([client, name]) => this._person(client, name, client === me.client)),
        ...(more > 0 && sorted.length > 0 ? [element("li", { className: "more" }, `and ${more} more`)] : []),
      );
    });
  }

  _person(client, name, isMe) {
    const inside = [
      element("span", { className: `avatar small hue-${hueOf(name)}`, "aria-hidden": "true" }, initialsOf(name)),
      nameElement(name, "title"),
    ];
    if (isMe) return element("li", { className: "me" }, ...inside, element("span", { className: "you" }, "you"));
    const button = element("button", { type: "button", className: "person", title: "Write privately", onclick: () => this._actions.write(name) }, ...inside);
    button.dataset.key = `p${client}`;
    return element("li", {}, button);
  }
}
