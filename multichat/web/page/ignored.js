// Whom a person does not want to read: names, and the clients that have had one of them.  Pure: no
// DOM.
//
// A name is ignored until it is named again.  Who had it stays ignored under any other name, by the
// number of the client; that other name is not ignored when somebody else has it.

import { fold } from "./names.js";

// As in the terminal.
const MAX_CLIENTS = 4096;

export class Ignored {
  /** *names* are folded, as `names` returns them. */
  constructor(names = []) {
    this._names = new Set(names);
    this._clients = new Map(); // client → the ignored name that it had
  }

  get names() {
    return [...this._names];
  }

  /** Whether what *name* says, which is *client*, is not shown.  A client of 0 is nobody. */
  has({ client, name }) {
    if (this._names.size === 0) return false;
    const key = fold(name);
    if (!this._names.has(key)) return this._names.has(this._clients.get(client));
    if (client > 0 && this._clients.size < MAX_CLIENTS) this._clients.set(client, key);
    return true;
  }

  /** The numbers of clients may be others' now. */
  forgetClients() {
    this._clients.clear();
  }

  /** Ignore *name*, or no longer; return whether it is ignored now. */
  toggle(name) {
    const key = fold(name);
    if (this._names.delete(key)) return false;
    this._names.add(key);
    return true;
  }
}
