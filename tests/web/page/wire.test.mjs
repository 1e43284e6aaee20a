import assert from "node:assert/strict";
import test from "node:test";
import { encodeRequest, MAX_LINE_CHARACTERS, parseEvent, timeOf } from "../../../multichat/web/page/wire.js";

test("a line that is not an event is dropped", () => {
  const lines = ["", "hello", "{", "[]", "null", "{}", '{"type":5}', '{"type":"dance"}', '{"type":"__proto__"}', '{"type":"constructor"}', "[".repeat(100_000), '{"a":'.repeat(50_000), `{"type":"notice","text":"${"x".repeat(MAX_LINE_CHARACTERS)}"}`];
  for (const line of lines) assert.equal(parseEvent(line), null, line.slice(0, 50));
});

test("an event with a wrong or missing field is dropped", () => {
  const good = { type: "said", id: "e-1", time: "t", room: "lobby", client: 1, name: "bob", text: "hi" };
  assert.equal(parseEvent(JSON.stringify(good)).text, "hi");
  for (const key of ["id", "time", "room", "client", "name", "text"]) {
    for (const value of [undefined, null, {}, [], -1, 1.5, true, key === "client" ? "1" : 7]) {
      assert.equal(parseEvent(JSON.stringify({ ...good, [key]: value })), null, `${key}: ${JSON.stringify(value)}`);
    }
  }
  assert.equal(parseEvent(JSON.stringify({ ...good, name: "x".repeat(1000) })), null);
});

test("strings are cleaned, and unknown fields are left out", () => {
  const event = parseEvent('{"type":"said","id":"e-1","time":"","room":"a","client":1,"name":"b\\u202eob","text":"\\u001b[2J","evil":1,"act":"yes"}');
  assert.deepEqual(event, { type: "said", id: "e-1", time: "", room: "a", client: 1, name: "bob", text: "␛[2J" });
});

test("a room may have the name of a property", () => {
  const event = parseEvent('{"type":"welcome","client":1,"name":"a","room":"x","members":1,"limits":{"line":1,"name":1},"resumed":false,"rooms":{"__proto__":{"members":3,"last":null},"bad":{"members":"3"}}}');
  assert.deepEqual([...event.rooms], [["__proto__", { members: 3, last: null }]]);
  assert.equal({}.members, undefined);
});

test("a request is one line, its type first", () => {
  assert.equal(encodeRequest({ text: "a\nb\u2028", type: "say" }), '{"type":"say","text":"a\\nb\u2028"}');
  assert.ok(!encodeRequest({ type: "say", text: "\ud800" }).includes("\ud800"));
});

test("an invalid time is replaced by the current time", () => {
  assert.equal(timeOf("2025-01-15T10:30:45.123Z", 5), 1736937045123);
  for (const time of [undefined, "", "soon"]) assert.equal(timeOf(time, 5), 5);
});
