// One connection after the other, without I/O: lines in, events and lines out.  Pure: no DOM, no
// clock (times are given), no randomness (it is given).
//
// Owns the state of the connection, the password, the session token, and when to reconnect.  Whether
// to reconnect is the server's decision (`reconnect` and `after` of its goodbye); a connection that
// ends without a goodbye is lost, and another one is made.

import { clean } from "./text.js";
import { encodeHello, parseEvent } from "./wire.js";

export const STATES = Object.freeze({
  idle: "idle", // nothing has been tried yet
  connecting: "connecting", // a connection is being made, or the welcome has not come
  online: "online",
  waiting: "waiting", // for the time of the next attempt
  password: "password", // for the user to type it
  ended: "ended", // the server does not allow reconnecting, or we left
});

const TIMEOUTS = Object.freeze({
  welcome: 15, // for the connection, the password's check and the welcome together
  quiet: 30, // without a byte; then the server is pinged
  pong: 10, // for its answer
  fresh: 3, // a server that has sent something so recently is reachable
  slack: 30, // more while messages are unacknowledged: the server may be waiting for others
  firstRetry: 1,
  longestRetry: 30,
  steady: 2, // a connection that ends sooner does not reset the backoff
  longestAfter: 300, // the longest time that a server may ask us to stay away
});

// A goodbye before the welcome is mostly a line of text, without a code.
const TEXT_GOODBYE = /^\[Server\] goodbye: (.*)$/u;
const MAY_RETURN = [
  "the server is full",
  "the server is not available now",
  "too slow",
  "too far behind",
  "idle for",
  "too many clients from your address",
  "too many wrong passwords from your address",
  "too many password attempts",
  "the server is about to shut down",
  "the server is shutting down",
];

/** Return the seconds before attempt number *failures*, counted from 0: exponential with jitter. */
export function backoff(failures, random, timeouts = TIMEOUTS) {
  const seconds = Math.min(timeouts.firstRetry * 2 ** failures, timeouts.longestRetry);
  return (seconds * (1 + random())) / 2;
}

export class Session {
  /** *token* is that of the session to resume, *random* returns a number in [0, 1). */
  constructor({ token = "", random, timeouts = {} }) {
    this.state = STATES.idle;
    this.token = token;
    this.retryAt = null;
    this.reason = "";
    this.limits = { line: 65_536, name: 32, wait: 0 };
    this._random = random;
    this._timeouts = { ...TIMEOUTS, ...timeouts };
    this._password = "";
    this._passwordSent = false;
    this._failures = 0;
    this._heard = 0;
    this._welcomed = 0;
    this._asked = false;
    this._goodbye = null;
    this._hello = null;
    this._isUnreached = false; // the last connection could not be made
    this._backAt = null; // when a draining server may be back
  }

  /** A connection is being made. */
  connecting(now) {
    this.state = STATES.connecting;
    this.retryAt = null;
    this._heard = now;
    this._asked = false;
    this._goodbye = null;
    this._passwordSent = false;
  }

  /** The connection is made: return the lines to send. */
  opened(hello, now) {
    this._heard = now;
    this._hello = this.token ? { protocol: 1, session: this.token, ...hello } : { protocol: 1, ...hello };
    return [encodeHello(this._hello)];
  }

  /**
   * A WebSocket message has come: one or more lines.
   *
   * Return the `events`, the `lines` to send, and whether to `close` the connection.
   */
  received(message, now) {
    this._heard = now;
    this._asked = false;
    const result = { events: [], lines: [], close: false };
    for (const line of message.split("\n")) {
      if (result.close || this._goodbye) break;
      const event = parseEvent(line);
      if (this.state === STATES.connecting && event?.type === "goodbye") {
        this._goodbye = event;
        result.close = true;
      } else if (this.state === STATES.connecting && event?.type !== "welcome") {
        this._text(line, result);
      } else if (event) {
        this._event(event, result);
      }
    }
    return result;
  }

  _event(event, result) {
    if (event.type === "welcome") {
      if (this.state !== STATES.connecting) return;
      this.state = STATES.online;
      this.reason = "";
      this.token = event.session ?? "";
      this.limits = event.limits;
      this._hello = null;
      this._welcomed = this._heard;
    } else if (event.type === "goodbye") {
      this._goodbye = event;
      result.close = true;
    }
    if (event.type !== "pong") result.events.push(event);
  }

  /** A line of the text protocol, before the welcome. */
  _text(line, result) {
    const goodbye = TEXT_GOODBYE.exec(line);
    if (goodbye) {
      const reason = goodbye[1].slice(0, 300);
      const reconnect = MAY_RETURN.some((start) => reason.startsWith(start));
      this._goodbye = { reason, reconnect };
      if (reason.startsWith("wrong password")) this._ask(result, true);
      result.close = true;
    } else if (line.startsWith("[Server] a password is required")) {
      if (!this._password) this._ask(result, false);
      else if (!this._passwordSent) {
        this._passwordSent = true;
        result.lines.push(`/auth ${this._password}`, encodeHello(this._hello));
      }
    } else if (line.startsWith("[Server] wrong password")) {
      this._ask(result, true);
    }
  }

  /** The user has to type the password, which takes longer than the server waits. */
  _ask(result, isWrong) {
    this.state = STATES.password;
    this._password = "";
    result.close = true;
    result.events.push({ type: "password-needed", isWrong });
  }

  /** The password was typed; the next connection uses it. */
  setPassword(password) {
    this._password = password.replace(/[\r\n]+/gu, " ");
  }

  /** The connection has ended, or could not be made.  `retryAt` says when to try again. */
  closed(now) {
    if (this.state === STATES.password || this.state === STATES.ended) return;
    const goodbye = this._goodbye;
    if (goodbye && !goodbye.reconnect) {
      this.state = STATES.ended;
      this.reason = goodbye.reason;
      if (goodbye.code === "quit" || goodbye.code === "kicked") this.token = "";
      return;
    }
    const isLost = this.state === STATES.online;
    if (isLost && now - this._welcomed >= this._timeouts.steady) this._failures = 0;
    this.state = STATES.waiting;
    this.reason = goodbye ? goodbye.reason : isLost ? "the connection is lost" : "the server cannot be reached";
    this._isUnreached = !goodbye && !isLost;
    const after = Math.min(goodbye?.after ?? 0, this._timeouts.longestAfter);
    if (isLost) this._backAt = goodbye?.code === "draining" ? now + after : null;
    const delay = backoff(this._failures, this._random, this._timeouts);
    this._failures += 1;
    if (goodbye?.code !== "draining") this.retryAt = now + Math.max(after, delay);
    else this.retryAt = now + delay; // another node may be available at once
    if (this._backAt !== null && this.retryAt >= this._backAt) {
      // Then the server may be back, however long the backoff has become; clients spread out.
      this.retryAt = Math.min(this.retryAt, Math.max(now, this._backAt) + this._random());
      this._backAt = null;
      this._failures = 0;
    }
  }

  /**
   * The server answered a plain request in place of the WebSocket that could not be made: note why,
   * from the *status* and, if it is ours, the *text*.
   */
  explain(status, text) {
    if (this.state !== STATES.waiting || !this._isUnreached || (status >= 200 && status < 300)) return;
    const reason = clean(text.slice(0, 300).trim());
    this.reason = reason || `the server, or a proxy in front of it, answers with status ${status}`;
  }

  /** The user or the network has returned: check at once whether the server is reachable. */
  probe(now) {
    const { fresh, quiet } = this._timeouts;
    if (this.state === STATES.online && !this._asked && now - this._heard > fresh) this._heard = now - quiet - 0.001;
  }

  /**
   * Time passes: return `"connect"`, `"ping"`, `"close"` or null, what is to be done.
   *
   * *isUnacknowledged* says that messages wait for their acknowledgement.
   */
  tick(now, isUnacknowledged = false) {
    const limits = this._timeouts;
    if (this.state === STATES.waiting) return now >= this.retryAt ? "connect" : null;
    if (this.state === STATES.connecting) return now - this._heard > limits.welcome ? "close" : null;
    if (this.state !== STATES.online) return null;
    const quiet = now - this._heard;
    const patience = isUnacknowledged ? limits.slack + (this.limits.wait ?? 0) : 0;
    if (quiet > limits.quiet + limits.pong + patience) return "close";
    if (quiet > limits.quiet && !this._asked) {
      this._asked = true;
      return "ping";
    }
    return null;
  }
}
