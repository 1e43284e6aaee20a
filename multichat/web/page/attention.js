// What reaches a user who is not looking at the page: the title, the icon, notifications, and what a
// screen reader says.

import { byId } from "./dom.js";

const SETTING = "multichat.notify";
const MAX_SPOKEN = 3;
const SPOKEN_CHARACTERS = 300;

export class Attention {
  /** *opened* is called with the key of a conversation whose notification was clicked. */
  constructor(opened) {
    this._opened = opened;
    this._spoken = [];
    this._title = document.title;
    this._icon = "";
  }

  /** Why notifications are off, in words; empty if they are on. */
  get whyOff() {
    if (!window.isSecureContext) return "The browser allows notifications only for pages that were loaded over HTTPS. The title of the tab counts what is unread.";
    if (!("Notification" in window)) return "This browser has no notifications for pages. The title of the tab counts what is unread.";
    if (Notification.permission === "denied") return "Notifications of this page are blocked in the browser’s settings.";
    return this.isOn ? "" : "Notifications are off.";
  }

  get canAsk() {
    return window.isSecureContext && "Notification" in window && Notification.permission !== "denied";
  }

  get isOn() {
    try {
      return this.canAsk && Notification.permission === "granted" && localStorage.getItem(SETTING) === "on";
    } catch {
      return false;
    }
  }

  /** Switch notifications on or off; the browser may ask. */
  async toggle() {
    const isOn = !this.isOn && (await Notification.requestPermission()) === "granted";
    try {
      localStorage.setItem(SETTING, isOn ? "on" : "off");
    } catch {
      // Until the page ends.
    }
  }

  /** Show in title and icon how many messages are unread. */
  count(title, unread, mentions) {
    const wanted = unread > 0 ? `(${unread}${mentions > 0 ? "!" : ""}) ${title}` : title;
    if (wanted !== this._title) document.title = this._title = wanted;
    const icon = mentions > 0 ? "icon-mention.svg" : unread > 0 ? "icon-unread.svg" : "icon.svg";
    if (icon !== this._icon) byId("icon").href = this._icon = icon;
  }

  /** Notify of a mention or a private message while the user is not looking. */
  notify(conversation, item) {
    if (!item.isMention || (document.visibilityState === "visible" && document.hasFocus()) || !this.isOn) return;
    const title = conversation.kind === "direct" ? item.name : `${item.name} in ${conversation.title}`;
    try {
      const shown = new Notification(title, { body: item.text.slice(0, 200), tag: conversation.key, icon: "icon.svg" });
      shown.onclick = () => {
        window.focus();
        this._opened(conversation.key);
        shown.close();
      };
    } catch {
      // Some browsers for phones allow them only to installed pages.
    }
  }

  /** Have *text* read aloud, politely. */
  say(text) {
    if (this._spoken.push(text) === 1) setTimeout(() => this._speak(), 300);
  }

  _speak() {
    const spoken = this._spoken.splice(0);
    const region = byId("spoken");
    const lines = spoken.length > MAX_SPOKEN ? [`${spoken.length} new messages`] : spoken;
    region.replaceChildren(...lines.map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line.slice(0, SPOKEN_CHARACTERS);
      return paragraph;
    }));
  }
}
