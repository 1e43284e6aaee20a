// Which session belongs to this tab.
//
// `sessionStorage` survives a reload, and is copied when a tab is duplicated: then two pages have
// the same session, and each would end the other's.  The first one holds the session; the other one
// starts with a session of its own.  Web Locks tell them apart where the page is a secure context;
// elsewhere the holder answers on a BroadcastChannel.

// On a reload the previous page may hold the lock a little longer.
const PATIENCE_MILLISECONDS = 600;
const ANSWER_MILLISECONDS = 150;

const KEY = "multichat";
const NAME_KEY = "multichat.name";

const random = () => crypto.getRandomValues(new Uint32Array(3)).reduce((text, each) => text + each.toString(36), "");

/** A random prefix for the nonces of this page load. */
export const prefix = random();

export class Tab {
  constructor() {
    this._id = "";
    this._storage = null;
    this._plan = 0;
    this._keep = null;
    this.isDuplicate = false; // another page has the session, and its name
  }

  /** Return what this tab has saved, or null; *keep* returns what to save. */
  async open(keep) {
    this._keep = keep;
    const kept = this._read();
    const isOurs = kept ? await this._claim(kept.tab) : false;
    this.isDuplicate = kept !== null && !isOurs;
    if (!isOurs) {
      this._id = random();
      await this._claim(this._id);
    }
    window.addEventListener("pagehide", () => this.save());
    document.addEventListener("visibilitychange", () => this.save());
    if (!kept) return null;
    return isOurs ? kept.chat : { rooms: kept.chat.rooms.map(({ name, read }) => ({ name, read })), current: kept.chat.current };
  }

  /** Keep the chat soon. */
  saveSoon() {
    if (this._plan === 0) this._plan = setTimeout(() => this.save(), 200);
  }

  save() {
    clearTimeout(this._plan);
    this._plan = 0;
    const chat = this._keep();
    for (const kept of [chat, { ...chat, directs: [] }]) {
      try {
        sessionStorage.setItem(KEY, JSON.stringify({ tab: this._id, chat: kept }));
        return;
      } catch {
        // Full or forbidden: without the private conversations it may fit.
      }
    }
  }

  _read() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
      return typeof kept?.tab === "string" && Array.isArray(kept.chat?.rooms) ? kept : null;
    } catch {
      return null;
    }
  }

  /** Return whether the tab *id* is ours: no other page holds it. */
  async _claim(id) {
    this._id = id;
    const name = `multichat ${new URL(".", document.baseURI).pathname} ${id}`;
    if (navigator.locks) {
      return new Promise((resolve) => {
        navigator.locks
          .request(name, { signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) }, () => {
            resolve(true);
            return new Promise(() => {}); // held until the page ends
          })
          .catch(() => resolve(false));
      });
    }
    const channel = new BroadcastChannel(name);
    const me = random();
    let isHeld = false;
    const isTaken = await new Promise((resolve) => {
      channel.onmessage = ({ data }) => {
        if (data?.from === me) return;
        if (data?.is === "held" || (data?.is === "asked" && !isHeld && data.from < me)) resolve(true);
        else if (data?.is === "asked") channel.postMessage({ is: "held", from: me });
      };
      channel.postMessage({ is: "asked", from: me });
      setTimeout(() => resolve(false), ANSWER_MILLISECONDS);
    });
    isHeld = true;
    if (isTaken) channel.close();
    return !isTaken;
  }
}

/** The name that was used last, in any tab. */
export function lastName() {
  try {
    return localStorage.getItem(NAME_KEY) ?? "";
  } catch {
    return "";
  }
}

export function rememberName(name) {
  try {
    localStorage.setItem(NAME_KEY, name);
  } catch {
    // It is typed again next time.
  }
}
