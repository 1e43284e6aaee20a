import assert from "node:assert/strict";
import test from "node:test";
import { completions, mayHoldSecret, parseLine } from "../../../multichat/web/page/commands.js";
import { HUES, hueOf, initialsOf, recipientOf } from "../../../multichat/web/page/names.js";

test("lines are messages unless they begin with one slash", () => {
  assert.deepEqual(parseLine("hello"), { type: "say", text: "hello" });
  assert.deepEqual(parseLine("//etc is full"), { type: "say", text: "/etc is full" });
  assert.deepEqual(parseLine("/say /me"), { type: "say", text: "/me" });
  assert.deepEqual(parseLine(" /usr/bin"), { type: "say", text: " /usr/bin" });
});

test("a login without its slash is not said", () => {
  const secret = "correct-horse";
  for (const [line, name] of [
    [`login alice ${secret}`, "/login"],
    [` Login  alice short and long`, "/login"],
    [`register ${secret}`, "/register"],
    [`passphrase ${secret}`, "/passphrase"],
  ]) {
    const { local, text } = parseLine(line, "Alice");
    assert.equal(local, "error", line);
    assert.match(text, new RegExp(`^Not sent, because it looks like ${name}: put / in front`, "u"));
    assert.ok(!text.includes(secret));
    assert.ok(mayHoldSecret(line));
    assert.deepEqual(parseLine(`/say ${line}`, "Alice"), { type: "say", text: line });
  }
  for (const line of ["register soon", "login page broken today", "login alice", "passphrase", "logins are broken"]) {
    assert.deepEqual(parseLine(line, "bob"), { type: "say", text: line });
  }
});

test("commands make the requests of the protocol", () => {
  const cases = {
    "/name bob": { type: "name", name: "bob" },
    "/NICK bob": { type: "name", name: "bob" },
    "/me waves": { type: "act", text: "waves" },
    "/msg @bob: a secret": { type: "direct", to: "bob", text: "a secret" },
    "/tell Client 7 yes": { type: "direct", to: 7, text: "yes" },
    "/w 7 yes": { type: "direct", to: 7, text: "yes" },
    "/join ##ops": { type: "enter", room: "ops" },
    "/topic tea at four": { type: "topic", text: "tea at four" },
    "/topic": { type: "topic" },
    "/login bob correct horse": { type: "login", name: "bob", passphrase: "correct horse" },
    "/register  two  spaces": { type: "register", passphrase: " two  spaces" },
    "/kick 2 enough": { type: "kick", who: 2, reason: "enough" },
    "/ban eve 1h spam and more": { type: "ban", what: "eve", time: "1h", reason: "spam and more" },
    "/ban eve spam": { type: "ban", what: "eve", reason: "spam" },
    "/announce the build is green": { type: "announce", text: "the build is green" },
    "/quit": { type: "quit" },
  };
  for (const [line, request] of Object.entries(cases)) assert.deepEqual(parseLine(line), request, line);
});

test("mistakes are explained and nothing is sent", () => {
  for (const line of ["/frobnicate", "/", "/name", "/msg bob", "/me", "/logout now", " /msg bob a secret", "/join"]) {
    const { local, text } = parseLine(line);
    assert.equal(local, "error", line);
    assert.ok(text.length > 10);
  }
});

test("commands, names and rooms are completed", () => {
  const words = { names: ["alice", "Albert", "bob", "Client 7"], rooms: ["lobby", "library"] };
  const texts = (line) => completions(line, line.length, words).map(({ text }) => text);
  assert.deepEqual(texts("/na"), ["/name"]);
  assert.ok(texts("/").length > 4);
  assert.deepEqual(texts("/msg al"), ["alice", "Albert"]);
  assert.deepEqual(texts("/join li"), ["library"]);
  assert.deepEqual(texts("hello @b"), ["@bob"]);
  assert.deepEqual(texts("hello b"), []);
  assert.deepEqual(texts("mail@b"), []);
  assert.equal(completions("ask @b now", 6, words)[0].start, 4);
});

test("names have a colour, initials and an address", () => {
  assert.equal(hueOf("Alice"), hueOf("alice"));
  for (const name of ["", "a", "地球", "😀"]) assert.ok(hueOf(name) >= 0 && hueOf(name) < HUES);
  assert.deepEqual(["alice", "ann-marie", "Client 123", "地球", ""].map(initialsOf), ["A", "AM", "23", "地", "?"]);
  assert.deepEqual([recipientOf("bob"), recipientOf("Client 12")], ["bob", 12]);
});
