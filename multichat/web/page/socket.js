// The WebSocket beneath the chat: opens it, closes it, and drives the timers.
//
// The address is relative to the page, so the page works under any prefix.  All decisions are made
// in `session.js`.

import { STATES } from "./session.js";
import { encodeRequest } from "./wire.js";

// One message may carry several lines, both ways.
const LINES = "multichat.lines";

// The server reads a message as a whole: no more than this at once.
const MESSAGE_CHARACTERS = 16 * 1024;

const TICK_MILLISECONDS = 500;

// A server that does not answer by then cannot be reached.
const EXPLAIN_MILLISECONDS = 5000;

const webSocketAddress = () => new URL("ws", document.baseURI);

const seconds = () => performance.now() / 1000;

export class Socket {
  /** *told* is called with the effects of received messages, and after each change of the state. */
  constructor(chat, told) {
    this._chat = chat;
    this._told = told;
    this._socket = null;
    this._wasOpen = false;
    setInterval(() => this._tick(), TICK_MILLISECONDS);
    window.addEventListener("online", () => this._back());
    window.addEventListener("pageshow", (event) => event.persisted && this._back());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this._back());
  }

  get retrySeconds() {
    const { retryAt } = this._chat.session;
    return retryAt === null ? 0 : Math.max(0, Math.ceil(retryAt - seconds()));
  }

  /** Connect now, without waiting for the time of the next attempt. */
  now() {
    const { state } = this._chat.session;
    if (this._socket || state === STATES.online) return;
    this._connect();
  }

  /** The user is looking again, or the network is back. */
  _back() {
    const { session } = this._chat;
    if (session.state === STATES.waiting) this.now();
    session.probe(seconds());
    this._tick();
  }

  _connect() {
    const { session } = this._chat;
    session.connecting(seconds());
    this._wasOpen = false;
    const address = webSocketAddress();
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    let socket;
    try {
      socket = new WebSocket(address, [LINES]);
    } catch {
      session.closed(seconds());
      this._told([]);
      return;
    }
    this._socket = socket;
    const isOurs = () => this._socket === socket;
    socket.onopen = () => {
      if (!isOurs()) return;
      this._wasOpen = true;
      this.send(this._chat.opened(seconds()));
    };
    socket.onmessage = (message) => isOurs() && this._received(message.data);
    socket.onclose = () => isOurs() && this._ended();
    this._told([]);
  }

  _received(data) {
    if (typeof data !== "string") return;
    const { effects, lines, close } = this._chat.received(data, seconds());
    this.send(lines);
    this._told(effects);
    if (close) this._drop();
  }

  /** Send *lines*, several in one message if the server has agreed to that. */
  send(lines) {
    const socket = this._socket;
    if (!socket || socket.readyState !== WebSocket.OPEN || lines.length === 0) return;
    if (socket.protocol !== LINES) {
      for (const line of lines) socket.send(line);
      return;
    }
    let message = "";
    for (const line of lines) {
      if (message && message.length + line.length >= MESSAGE_CHARACTERS) {
        socket.send(message);
        message = "";
      }
      message += message ? `\n${line}` : line;
    }
    socket.send(message);
  }

  /** Send what the chat has gathered. */
  flush() {
    this.send(this._chat.takeLines());
  }

  /** Close the connection, without waiting for a server that may be gone. */
  _drop() {
    this._socket?.close();
    this._ended();
  }

  _ended() {
    if (!this._socket) return;
    this._socket = null;
    this._told(this._chat.closed(seconds()));
    if (!this._wasOpen) void this._askWhy();
  }

  /** Ask the server why it refuses the WebSocket: the browser does not say. */
  async _askWhy() {
    try {
      const signal = AbortSignal.timeout(EXPLAIN_MILLISECONDS);
      const response = await fetch(webSocketAddress(), { method: "OPTIONS", cache: "no-store", signal });
      const isText = response.headers.get("Content-Type")?.startsWith("text/plain");
      this._chat.session.explain(response.status, isText ? await response.text() : "");
      this._told([]);
    } catch {
      // It cannot be reached.
    }
  }

  _tick() {
    const { session, outbox } = this._chat;
    const todo = session.tick(seconds(), outbox.isUnacknowledged);
    if (todo === "connect") this._connect();
    else if (todo === "close") this._drop();
    else if (todo === "ping") this.send([encodeRequest({ type: "ping" })]);
    else if (session.state === STATES.waiting) this._told([]);
  }
}
