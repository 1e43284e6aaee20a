import assert from "node:assert/strict";
import test from "node:test";
import { backoff, Session, STATES } from "../../../multichat/web/page/session.js";

const WELCOME = JSON.stringify({ type: "welcome", client: 1, name: "alice", room: "lobby", members: 1, limits: { line: 100, name: 32, wait: 5 }, resumed: false, session: "token" });
const started = (options = {}) => {
  const session = new Session({ random: () => 0.5, ...options });
  session.connecting(0);
  return session;
};

test("the hello resumes the known session", () => {
  assert.deepEqual(started().opened({ name: "alice" }, 0), ['/json {"protocol":1,"name":"alice"}']);
  assert.deepEqual(started({ token: "old" }).opened({}, 0), ['/json {"protocol":1,"session":"old"}']);
});

test("text before the welcome is not an event", () => {
  const session = started();
  session.opened({}, 0);
  const { events } = session.received(`[bob] hello\n{"type":"said"}\n${WELCOME}\nnonsense`, 1);
  assert.deepEqual(events.map((event) => event.type), ["welcome"]);
  assert.equal(session.state, STATES.online);
  assert.equal(session.token, "token");
});

test("a lost connection is made again, each time later and with jitter", () => {
  const session = started();
  const delays = [];
  for (let failures = 0; failures < 8; failures++) {
    session.closed(100);
    delays.push(session.retryAt - 100);
    assert.equal(session.tick(100), null);
    assert.equal(session.tick(session.retryAt), "connect");
    session.connecting(100);
  }
  assert.deepEqual(delays, [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 22.5]);
  assert.ok(backoff(0, () => 0) < backoff(0, () => 0.99));
});

test("a server that welcomes and drops us at once does not reset the backoff", () => {
  const session = started();
  const delay = (seconds) => {
    session.connecting(0);
    session.received(WELCOME, 0);
    session.closed(seconds);
    return session.retryAt - seconds;
  };
  assert.deepEqual([delay(0), delay(0), delay(0), delay(5)], [0.75, 1.5, 3, 0.75]);
});

test("the reason for a refused WebSocket is the server's", () => {
  const reason = (status, text, isLost = false) => {
    const session = started();
    if (isLost) session.received(WELCOME, 0);
    session.closed(0);
    session.explain(status, text);
    return session.reason;
  };
  assert.equal(reason(403, "your address is banned\u202e\n"), "your address is banned");
  assert.match(reason(502, ""), /status 502/u);
  assert.equal(reason(200, "a WebSocket"), "the server cannot be reached");
  assert.equal(reason(403, "too late", true), "the connection is lost");
  assert.equal(reason(503, "x".repeat(1e6)).length, 300);
});

test("the goodbye decides whether and when to reconnect", () => {
  const goodbye = (fields) => {
    const session = started();
    session.opened({}, 0);
    const { close } = session.received(`${WELCOME}\n${JSON.stringify({ type: "goodbye", reason: "because", ...fields })}\n${WELCOME}`, 0);
    assert.ok(close);
    session.closed(0);
    return session;
  };
  assert.equal(goodbye({ code: "shutdown", reconnect: true, after: 7 }).retryAt, 7);
  assert.equal(goodbye({ code: "idle", reconnect: true, after: 1e9 }).retryAt, 300);
  // In a cluster another node may be available at once; a single server is back then.
  const drained = goodbye({ code: "draining", reconnect: true, after: 20 });
  const tries = [];
  while (tries.length < 8) {
    tries.push(drained.retryAt);
    drained.connecting(drained.retryAt);
    drained.closed(drained.retryAt);
  }
  assert.ok(tries[0] <= 1);
  const back = tries.findIndex((time) => time >= 20);
  assert.ok(tries[back] <= 21);
  assert.ok(tries[back + 1] <= tries[back] + 1);
  for (const code of ["kicked", "banned", "replaced", "quit"]) {
    const session = goodbye({ code, reconnect: false });
    assert.equal(session.state, STATES.ended);
    assert.equal(session.reason, "because");
    assert.equal(session.tick(1e6), null);
  }
});

test("a goodbye in text before the welcome is understood", () => {
  const reason = (text) => {
    const session = started();
    session.opened({}, 0);
    session.received(`[Server] goodbye: ${text}`, 0);
    session.closed(0);
    return session.state;
  };
  assert.equal(reason("the server is full (limit: 3)"), STATES.waiting);
  assert.equal(reason("too many wrong passwords from your address; try again later"), STATES.waiting);
  assert.equal(reason("banned for 9 min"), STATES.ended);
});

test("a goodbye in JSON before the welcome is understood", () => {
  const session = started();
  session.opened({}, 0);
  const line = JSON.stringify({ type: "goodbye", reason: "away", code: "unavailable", reconnect: true });
  const { close, events } = session.received(`${line}\n${WELCOME}`, 0);
  assert.deepEqual([close, events], [true, []]);
  session.closed(0);
  assert.deepEqual([session.state, session.reason], [STATES.waiting, "away"]);
});

test("a password is asked for, typed, and sent with the hello", () => {
  const session = started();
  session.opened({ name: "alice" }, 0);
  const asked = session.received("[Server] a password is required: /auth PASSWORD", 0);
  assert.deepEqual(asked.events, [{ type: "password-needed", isWrong: false }]);
  assert.ok(asked.close);
  session.closed(0);
  assert.equal(session.state, STATES.password);
  assert.equal(session.tick(1000), null);

  session.setPassword("sword\nfish");
  session.connecting(0);
  session.opened({ name: "alice" }, 0);
  const prompts = "[Server] a password is required: /auth PASSWORD\n[Server] a password is required: /auth PASSWORD";
  assert.deepEqual(session.received(prompts, 0).lines, ["/auth sword fish", '/json {"protocol":1,"name":"alice"}']);
  const wrong = session.received("[Server] wrong password", 0);
  assert.deepEqual(wrong.events, [{ type: "password-needed", isWrong: true }]);
});

test("a silent server is pinged, and then given up", () => {
  const session = started();
  assert.equal(session.tick(16), "close");
  session.opened({}, 0);
  session.received(WELCOME, 0);
  assert.equal(session.tick(30), null);
  assert.equal(session.tick(31), "ping");
  assert.equal(session.tick(32), null);
  assert.equal(session.tick(41, true), null); // it may be waiting for a slow client
  assert.equal(session.tick(76, true), "close");
  assert.equal(session.tick(41), "close");
  session.received('{"type":"pong"}', 41);
  assert.equal(session.tick(60), null);
});

test("a user who returns to the page soon sees whether the server is reachable", () => {
  const session = started();
  session.opened({}, 0);
  session.received(WELCOME, 100);
  session.probe(101);
  assert.equal(session.tick(101), null);
  session.probe(110);
  assert.equal(session.tick(110), "ping");
  session.probe(115);
  assert.equal(session.tick(119), null);
  assert.equal(session.tick(121), "close");
});

test("the reason distinguishes a lost connection from an unreachable server", () => {
  const session = started();
  session.closed(0);
  assert.match(session.reason, /reached/u);
  session.connecting(0);
  session.received(WELCOME, 0);
  session.closed(0);
  assert.match(session.reason, /lost/u);
});
