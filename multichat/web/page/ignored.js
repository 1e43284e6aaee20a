// The ignored names, and the clients that have had one of them.  Pure: no DOM.
//
// A name is ignored until the user repeats the command.  A client that had it stays ignored under
// any other name, by its number; that other name is not ignored for another client.

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

  /** Whether messages of *name*, which is *client*, are hidden.  0 is not the number of a client. */
  has({ client, name }) {
    if (this._names.size === 0) return false;
    const key = fold(name);
    if (!this._names.has(key)) return this._names.has(this._clients.get(client));
    if (client > 0 && this._clients.size < MAX_CLIENTS) this._clients.set(client, key);
    return true;
  }

  /** The numbers may belong to other clients now. */
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
