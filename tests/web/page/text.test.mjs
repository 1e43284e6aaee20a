import assert from "node:assert/strict";
import test from "node:test";
import { clean, mentions, segments, typedLines, utf8Bytes } from "../../../multichat/web/page/text.js";

const links = (text) => segments(text).filter((part) => part.kind === "link").map((part) => part.text);

test("a link ends before the punctuation of its sentence", () => {
  assert.deepEqual(links("see https://example.org/a?b=1#c."), ["https://example.org/a?b=1#c"]);
  assert.deepEqual(links("(https://example.org/x_(y))"), ["https://example.org/x_(y)"]);
  assert.deepEqual(links("http://a.example, https://b.example!"), ["http://a.example", "https://b.example"]);
});

test("only http and https are links", () => {
  for (const text of ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "vbscript:x", "https://", "http://[", "//example.org"]) {
    assert.deepEqual(links(text), [], text);
  }
});

test("the segments together are the text", () => {
  for (const text of ["", "plain", "@alice https://x.example/alice alice", "<b>alice</b>", "https://x.example/?q=<script>"]) {
    assert.equal(segments(text, "alice").map((part) => part.text).join(""), text);
  }
});

test("a mention is a separate word", () => {
  for (const text of ["alice", "hi alice!", "@Alice:", "(ALICE)", "alice's"]) assert.ok(mentions(text, "alice"), text);
  for (const text of ["malice", "alices", "alice_2", "al ice", "", "alicé"]) assert.ok(!mentions(text, "alice"), text);
  assert.ok(mentions("ask Client 7", "Client 7"));
  assert.ok(!mentions("ask Client 71", "Client 7"));
  assert.ok(mentions("地球さん、こんにちは", "地球"));
  assert.ok(mentions("지민아 안녕", "지민"));
  assert.ok(!mentions("anything", ""));
});

test("a name is not a pattern", () => {
  assert.ok(mentions("hi a.b", "a.b"));
  assert.ok(!mentions("hi axb", "a.b"));
  assert.ok(mentions("hi a-b", "a-b"));
});

test("every mention in a text is found, independently of earlier searches", () => {
  mentions("x alice", "alice");
  assert.deepEqual(segments("alice and alice", "alice").map((part) => part.kind), ["mention", "text", "mention"]);
});

test("a name in a link is not a mention", () => {
  assert.deepEqual(segments("https://x.example/alice", "alice").map((part) => part.kind), ["link"]);
});

test("control characters and bidi overrides are cleaned as the server does", () => {
  assert.equal(clean("a\u001b[2J\u0007\r\n"), "a␛[2J␇␍␊");
  assert.equal(clean("\u007f\u009b\u2028"), "␡\ufffd ");
  assert.equal(clean("a\u202eb\u2066c\ufeffd\te"), "abcd\te");
  assert.equal(clean("\ud800x"), "\ufffdx");
  assert.equal(clean("👩‍👩‍👧"), "👩‍👩‍👧");
});

test("long texts take linear time", () => {
  const nasty = ["https://x" + ")".repeat(100_000), "alice".repeat(20_000), "@".repeat(100_000), "http://".repeat(15_000), "a".repeat(1_000_000)];
  for (const text of nasty) segments(text, "alice");
});

test("finding the end of a link takes no longer than the link", () => {
  // The least of several, so that other work of the machine is left out.
  const time = (text) => {
    let least = Infinity;
    for (let round = 0; round < 20; round++) {
      const begun = performance.now();
      segments(text);
      least = Math.min(least, performance.now() - begun);
    }
    return least;
  };
  const control = time("https://x/" + "y".repeat(4000));
  for (const closing of [")", "]", ")]", ").", "("]) {
    assert.ok(time("https://x/" + closing.repeat(4000 / closing.length)) < 100 * control + 5, closing);
  }
  assert.deepEqual(links("(see https://x/a_(b)_[c]))]."), ["https://x/a_(b)_[c]"]);
});

test("empty typed lines are left out", () => {
  assert.deepEqual(typedLines("one\r\n\r\n  two \n\t\nthree\r"), ["one", "  two ", "three"]);
  assert.equal(utf8Bytes("é€😀"), 9);
});
