// Messages that are not acknowledged yet.  Pure: no DOM.
//
// Every message has a nonce with a random prefix of its page load: the server treats a nonce that it
// has seen in this session as the same message.  After a lost connection all are sent again, in
// order and with their nonces, so that each is published once.  The outbox survives a reload.

/** The server remembers 256 nonces of a session, so no more messages are unacknowledged. */
export const MAX_UNACKNOWLEDGED = 200;

// Above this, input and pastes are refused.
const MAX_PENDING = 2000;

export class Outbox {
  /** *prefix* is random, new for each page load; *pending* was kept from the page before. */
  constructor(prefix, pending = []) {
    this._prefix = prefix;
    this._next = 1;
    this.pending = pending.map((each) => ({ ...each, sent: false }));
  }

  get isFull() {
    return this.pending.length >= MAX_PENDING;
  }

  get isUnacknowledged() {
    return this.pending.some((each) => each.sent);
  }

  /** Whether any was sent, in this connection or in one before. */
  get isTried() {
    return this.pending.some((each) => each.isTried);
  }

  /** Return a nonce that no request has had. */
  nonce() {
    return `${this._prefix}-${this._next++}`;
  }

  /** Keep *request* (`say`, `act` or `direct`) until it is acknowledged; return it with its nonce. */
  add(request, time) {
    const entry = { request: { ...request, nonce: this.nonce() }, time, sent: false, isTried: false };
    this.pending.push(entry);
    return entry;
  }

  /** Return the requests to send now, in order, and count them as sent. */
  take() {
    const taken = [];
    for (const entry of this.pending.slice(0, MAX_UNACKNOWLEDGED)) {
      if (!entry.sent) {
        entry.sent = true;
        entry.isTried = true;
        taken.push(entry.request);
      }
    }
    return taken;
  }

  /** The connection is lost: unacknowledged messages have to be sent again. */
  reset() {
    for (const entry of this.pending) entry.sent = false;
  }

  /** Remove the message with *nonce*, which is answered; return it, or null if there is none. */
  settle(nonce) {
    const index = this.pending.findIndex((each) => each.request.nonce === nonce);
    return index < 0 ? null : this.pending.splice(index, 1)[0];
  }
}
