import assert from "node:assert/strict";
import test from "node:test";
import { Conversation, describeChanges, makeItem } from "../../../multichat/web/page/conversation.js";
import { RowWindow, rowsOf } from "../../../multichat/web/page/rows.js";

const NOON = new Date(2025, 0, 15, 12).getTime();
const item = (number, fields = {}) => ({ key: `k${number}`, version: 0, kind: "said", name: "bob", client: 2, time: NOON + number * 1000, ...fields });
const items = (many) => Array.from({ length: many }, (_, number) => item(number));

test("messages of one sender in a row are a group", () => {
  const rows = rowsOf([item(0), item(1), item(2, { name: "eve", client: 3 }), item(3), item(4, { isAct: true }), item(5), item(900)], 0, 7);
  assert.deepEqual(rows.map(({ kind, isHead }) => (kind === "day" ? "day" : isHead)), ["day", true, false, true, true, true, true, true]);
});

test("there is a line between two days, and above the unread messages", () => {
  const second = item(1, { time: NOON + 86_400_000 });
  const all = [item(0), second, item(2, { time: second.time + 1 })];
  assert.deepEqual(rowsOf(all, 0, 3, all[2]).map(({ kind }) => kind), ["day", "said", "day", "said", "divider", "said"]);
  assert.deepEqual(rowsOf(all, 1, 3).map(({ kind }) => kind), ["day", "said", "said"]);
});

test("only rows that change have another signature", () => {
  const all = items(3);
  const before = rowsOf(all, 0, 3);
  all[1].version += 1;
  const after = rowsOf(all, 0, 3);
  assert.deepEqual(after.map((row, at) => row.signature === before[at].signature), [true, true, false, true]);
});

test("the window follows the end, and is bounded", () => {
  const shown = new RowWindow({ size: 10, step: 5, most: 20 });
  const all = items(100);
  assert.deepEqual(shown.range(all), [90, 100]);
  all.push(item(100));
  assert.deepEqual(shown.range(all), [91, 101]);
  for (let times = 0; times < 10; times++) {
    shown.up(all);
    const [start, end] = shown.range(all);
    assert.ok(end - start <= 20);
  }
  assert.deepEqual(shown.range(all), [41, 61]);
  all.push(item(101));
  all.unshift(...items(7).map((each) => ({ ...each, key: `old ${each.key}` })));
  assert.deepEqual(shown.range(all), [48, 68]);
  while (shown.down(all));
  assert.equal(shown.range(all)[1], all.length);
  shown.follow(10);
  assert.deepEqual(shown.range(all), [all.length - 10, all.length]);
});

test("the window survives the removal of its messages", () => {
  const shown = new RowWindow({ size: 10, step: 5, most: 20 });
  const all = items(50);
  shown.hold(all);
  all.splice(0, 45);
  const [start, end] = shown.range(all);
  assert.ok(start >= 0 && end <= all.length && start < end);
  all.splice(0);
  assert.deepEqual(shown.range(all), [0, 0]);
  assert.equal(shown.up(all), false);
  assert.equal(shown.down(all), false);
});

test("changes are described by their final result", () => {
  const described = (...changes) => {
    const conversation = new Conversation("room", "#a", "a");
    for (const change of changes) conversation.changed(0, change);
    return describeChanges(conversation.items[0]);
  };
  const joined = (client, name) => ({ type: "joined", client, name });
  const left = (client, name) => ({ type: "left", client, name });
  assert.equal(described(joined(1, "a")), "a joined");
  assert.equal(described(joined(1, "a"), joined(2, "b")), "a and b joined");
  assert.equal(described(...[1, 2, 3, 4, 5].map((n) => joined(n, `n${n}`))), "n1, n2, n3 and 2 others joined");
  assert.equal(described(joined(1, "a"), left(1, "a")), "a came and went");
  assert.equal(described(left(1, "a"), joined(1, "a")), "a came back");
  assert.equal(described({ type: "renamed", client: 1, old: "a", name: "b" }, { type: "renamed", client: 1, old: "b", name: "c" }), "a is now c");
  assert.equal(described(joined(1, "Client 1"), { type: "renamed", client: 1, old: "Client 1", name: "b" }), "b joined");
  assert.equal(described({ type: "presence", joined: 20, left: 1, renamed: 2 }), "1 person left · 20 people joined · 2 changed their names");
});

test("an unread line moves with its message and ends with it", () => {
  const conversation = new Conversation("room", "#a", "a");
  const first = makeItem("said", 0, { id: "1", text: "x" });
  conversation.insert(first);
  conversation.heard(first, false);
  assert.equal(conversation.divider, first);
  conversation.remove(first);
  assert.equal(conversation.divider, null);
});
