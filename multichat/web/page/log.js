// The message log: draws part of the shown conversation, and keeps the text that is read in place.
//
// At the end it follows; anywhere else nothing moves: the first visible row is measured before and
// after each change, and the difference is scrolled.  At most `RowWindow.most` rows are in the page.

import { describeChanges } from "./conversation.js";
import { byId, element, nameElement, oncePerFrame } from "./dom.js";
import { hueOf, initialsOf } from "./names.js";
import { RowWindow, rowsOf } from "./rows.js";
import { segments, SHOWN_CHARACTERS } from "./text.js";

// Nearer to an end than this, more is drawn, or requested.
const NEAR_PIXELS = 500;

// Nearer to the end than this, the log follows.
const AT_END_PIXELS = 40;

/** The text in a row: its head comes and goes with the rows above it. */
const textOf = (row) => row.querySelector(".text") ?? row;

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

export class Log {
  /**
   * *loadOlder* requests earlier messages of a conversation; *changed* is called when the user
   * scrolls; *retry* and *discard* are for messages that were not sent; *write* opens a private
   * conversation.
   */
  constructor({ loadOlder, changed, retry, discard, write }) {
    this._actions = { loadOlder, changed, retry, discard, write };
    this._scroller = byId("log");
    this._list = byId("rows");
    this._newest = byId("newest");
    this._drawn = new Map(); // key → {signature, element}
    this._window = new RowWindow();
    this._conversation = null;
    this._name = "";
    this._ignored = null;
    this._goTo = null;
    this._stuckAt = 0; // where the end was when the log followed last
    this._scroller.addEventListener("scroll", oncePerFrame(() => this._scrolled()), { passive: true });
    this._newest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this._stick()).observe(this._scroller);
  }

  /** Whether the newest message is in view. */
  get isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this._scroller;
    return this._window.isFollowing && scrollHeight - scrollTop - clientHeight < AT_END_PIXELS;
  }

  /** Draw *conversation* as it is now; *name* is ours, *ignored* are not shown. */
  draw(conversation, name, ignored) {
    this._ignored = ignored;
    if (conversation !== this._conversation || name !== this._name) {
      if (conversation !== this._conversation) {
        this._conversation = conversation;
        this._window = new RowWindow();
        if (conversation.unread > 0) this._window.follow(conversation.unread + 20);
        this._goTo = conversation.unread > 0 ? "divider" : null;
      }
      this._name = name;
      this._stuckAt = 0;
      this._drawn.clear();
      this._list.replaceChildren();
    }
    conversation.isHeld = !this._window.isFollowing;
    this._render();
    if (this._goTo && this._drawn.has("divider")) this._showDivider();
    this._goTo = null;
    this._fill();
  }

  /** Carry out *change*, which may move the log as a whole; the text that is read stays in place. */
  keepPlace(change) {
    const top = () => this._scroller.getBoundingClientRect().top;
    const before = top();
    change();
    const moved = top() - before;
    if (moved !== 0 && !this._window.isFollowing) this._scroller.scrollTop += moved;
  }

  toEnd() {
    this._window.follow();
    this._stuckAt = 0;
    this._render();
    this._scroller.scrollTop = this._scroller.scrollHeight;
    this._actions.changed();
  }

  _render() {
    const { items, divider } = this._conversation;
    const anchor = this._window.isFollowing ? null : this._anchor();
    // In the same step: a line between days may vanish, and there may be nothing above to scroll to.
    if (anchor && this._scroller.scrollTop < NEAR_PIXELS) this._window.up(items);
    const [start, end] = this._window.range(items);
    const rows = rowsOf(items, start, end, divider, this._ignored);
    if (this._isBeginning(start)) rows.unshift({ key: "beginning", signature: "", kind: "beginning" });
    const keys = new Set(rows.map((row) => row.key));
    for (const [key, { element: old }] of this._drawn) {
      if (keys.has(key)) continue;
      old.remove();
      this._drawn.delete(key);
    }
    let place = this._list.firstElementChild;
    for (const row of rows) {
      let drawn = this._drawn.get(row.key);
      if (drawn?.signature !== row.signature) {
        const made = this._row(row);
        if (drawn) {
          if (place === drawn.element) place = made;
          drawn.element.replaceWith(made);
        }
        drawn = { signature: row.signature, element: made };
        this._drawn.set(row.key, drawn);
      }
      if (drawn.element === place) place = place.nextElementSibling;
      else this._list.insertBefore(drawn.element, place);
    }
    if (anchor) this._restore(anchor);
    else this._stick();
    this._button(end);
  }

  /** Whether the first message of the whole conversation is drawn. */
  _isBeginning(start) {
    const { hasMore, isFresh, isIn, kind } = this._conversation;
    return start === 0 && !hasMore && !isFresh && (isIn || kind === "direct");
  }

  /** The first row in view that stays, and where it is. */
  _anchor() {
    const top = this._scroller.getBoundingClientRect().top;
    for (const [key, { element: row }] of this._inOrder()) {
      const { bottom, top: itsTop } = textOf(row).getBoundingClientRect();
      if (bottom > top && !key.startsWith("d")) return { key, offset: itsTop - top };
    }
    return null;
  }

  *_inOrder() {
    const keys = new Map([...this._drawn].map(([key, { element: row }]) => [row, key]));
    for (const row of this._list.children) yield [keys.get(row), { element: row }];
  }

  _restore({ key, offset }) {
    const row = this._drawn.get(key)?.element;
    if (!row) return;
    const top = this._scroller.getBoundingClientRect().top;
    this._scroller.scrollTop += textOf(row).getBoundingClientRect().top - top - offset;
  }

  /** Follow the end, unless the user has just scrolled up: that event may still be to come. */
  _stick() {
    if (!this._window.isFollowing || this._goTo) return;
    const { scrollHeight, scrollTop, clientHeight } = this._scroller;
    if (scrollTop < this._stuckAt - 1 && scrollHeight - scrollTop - clientHeight >= AT_END_PIXELS) {
      this._window.hold(this._conversation.items);
      return;
    }
    this._scroller.scrollTop = scrollHeight;
    this._stuckAt = this._scroller.scrollTop;
  }

  _showDivider() {
    const row = this._drawn.get("divider").element;
    const top = row.getBoundingClientRect().top - this._scroller.getBoundingClientRect().top;
    const end = this._scroller.scrollHeight - this._scroller.clientHeight;
    const wanted = this._scroller.scrollTop + top - 24;
    if (wanted < end - AT_END_PIXELS) {
      this._window.hold(this._conversation.items);
      this._scroller.scrollTop = wanted;
    } else {
      this._scroller.scrollTop = end;
    }
  }

  _scrolled() {
    const conversation = this._conversation;
    if (!conversation) return;
    const { scrollHeight, scrollTop, clientHeight } = this._scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    const isAtEnd = below < AT_END_PIXELS && this._window.range(conversation.items)[1] === conversation.items.length;
    if (isAtEnd) {
      this._window.follow(Math.max(this._window.size, 100));
      this._stuckAt = scrollTop;
    } else {
      this._window.hold(conversation.items);
    }
    conversation.isHeld = !isAtEnd;
    if (!isAtEnd && below < NEAR_PIXELS) this._extend("down");
    this._fill();
    this._button(this._window.range(conversation.items)[1]);
    this._actions.changed();
  }

  /** Draw or ask for older messages if the beginning of what is drawn is near. */
  _fill() {
    if (this._scroller.scrollTop >= NEAR_PIXELS) return;
    if (!this._extend("up")) this._actions.loadOlder(this._conversation);
  }

  _extend(direction) {
    const anchor = this._anchor();
    if (!this._window[direction](this._conversation.items)) return false;
    const isFollowing = this.isAtEnd;
    this._render();
    if (anchor) this._restore(anchor);
    return !isFollowing;
  }

  _button(end) {
    const { items, unread } = this._conversation;
    const isHidden = this._window.isFollowing && end === items.length;
    this._newest.hidden = isHidden;
    if (isHidden) return;
    const label = unread > 0 ? `${unread} new ${unread === 1 ? "message" : "messages"}` : "Newest messages";
    if (this._newest.firstElementChild.textContent !== label) this._newest.firstElementChild.textContent = label;
  }

  // Rows -----------------------------------------------------------------------------------------

  _row(row) {
    const { item } = row;
    switch (row.kind) {
      case "day":
        return element("div", { className: "row day" }, element("span", {}, DAY.format(row.time)));
      case "divider":
        return element("div", { className: "row divider" }, element("span", {}, "New"));
      case "beginning":
        return this._beginning();
      case "said":
        return this._message(item, row.isHead);
      case "presence":
        return element("div", { className: "row note presence", dir: "auto" }, describeChanges(item));
      default:
        return element("div", { className: `row note ${item.kind}`, dir: "auto" }, item.text);
    }
  }

  _beginning() {
    const { kind, title } = this._conversation;
    const isRoom = kind === "room";
    return element(
      "div",
      { className: `row beginning hue-${hueOf(title)}` },
      element("span", { className: "avatar", "aria-hidden": "true" }, isRoom ? "#" : initialsOf(title)),
      element("p", { className: "big" }, nameElement(title)),
      element("p", {}, isRoom ? "This is the beginning of the room." : "What you write here, only the two of you can read."),
    );
  }

  _message(item, isHead) {
    const state = item.state ? ` ${item.state}` : "";
    const classes = `row said hue-${hueOf(item.name)}${isHead ? " head" : ""}${item.isOwn ? " own" : ""}${item.isMention && this._conversation.kind === "room" ? " mention" : ""}${state}`;
    const row = element("div", { className: classes });
    const clock = CLOCK.format(item.time);
    const time = element("time", { dateTime: new Date(item.time).toISOString(), title: FULL.format(item.time) }, clock);
    if (isHead) {
      row.append(element("span", { className: "avatar", "aria-hidden": "true" }, initialsOf(item.name)));
      if (!item.isAct) row.append(element("div", { className: "by" }, this._author(item), time));
    } else {
      row.append(element("span", { className: "gutter" }, time));
    }
    const text = element("div", { className: `text${item.isAct ? " act" : ""}`, dir: "auto" });
    if (item.isAct) text.append(this._author(item), " ");
    this._fillText(text, item.text);
    if (item.isAct) text.append(" ", time);
    row.append(text);
    if (item.state === "pending") row.append(element("span", { className: "hidden" }, "not sent yet"));
    if (item.state === "failed") row.append(this._failure(item));
    return row;
  }

  _author(item) {
    const name = nameElement(item.name, "name");
    // Client 0 is a script that uses the webhook; it cannot be answered.
    if (item.isOwn || item.client === 0 || this._conversation.kind === "direct") return name;
    return element(
      "button",
      { type: "button", className: "author", title: "Write privately", onclick: () => this._actions.write(item) },
      name,
    );
  }

  _fillText(into, whole) {
    const isLong = whole.length > SHOWN_CHARACTERS;
    const shown = isLong ? `${whole.slice(0, SHOWN_CHARACTERS).replace(/[\ud800-\udbff]$/u, "")}…` : whole;
    const nodes = segments(shown, this._name).map((part) => {
      if (part.kind === "mention") return element("mark", {}, part.text);
      if (part.kind !== "link") return part.text;
      return element("a", { href: part.href, target: "_blank", rel: "noopener noreferrer", title: part.href }, part.text);
    });
    into.append(...nodes);
    if (!isLong) return;
    const more = element("button", { type: "button", className: "link" }, `Show all ${whole.length} characters`);
    more.onclick = () => into.replaceChildren(whole);
    into.append(" ", more);
  }

  _failure(item) {
    const conversation = this._conversation;
    return element(
      "div",
      { className: "failure" },
      `Not sent: ${item.error} `,
      element("button", { type: "button", className: "link", onclick: () => this._actions.retry(conversation, item) }, "Try again"),
      " ",
      element("button", { type: "button", className: "link", onclick: () => this._actions.discard(conversation, item) }, "Discard"),
    );
  }
}
