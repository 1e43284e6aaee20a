// What is in a text: links, mentions, its size in bytes.  Pure: no DOM.
//
// Everything that a peer or the server wrote passes through `clean` before it is kept.  Nothing here
// builds markup: a text becomes segments, and each segment becomes one text node.

/** The longest text that is shown at once; the rest is behind a button. */
export const SHOWN_CHARACTERS = 4000;

// A longer text is cut: no honest server sends longer lines.
const KEPT_CHARACTERS = 1024 * 1024;

// Further links and mentions in one message are plain text.
const MAX_SEGMENTS = 100;

const LINK = /https?:\/\/[^\s<>"`\u2028\u2029]+/giu;
const CONTROL = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/gu;
const LONE_SURROGATE = /\p{Surrogate}/gu;
const WORD = "\\p{L}\\p{N}\\p{M}_";
const UNSPACED = /^[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmr}\p{sc=Mymr}\p{sc=Hang}]/u;
const encoder = new TextEncoder();

/** Return *text* without control characters, bidi overrides and lone surrogates. */
export function clean(text) {
  return text
    .slice(0, KEPT_CHARACTERS)
    .replace(LONE_SURROGATE, "\ufffd")
    .replace(CONTROL, (character) => {
      const code = character.codePointAt(0);
      if (code < 0x20) return String.fromCodePoint(0x2400 + code);
      if (code === 0x7f) return "\u2421";
      if (code < 0xa0) return "\ufffd";
      return code < 0x202a ? " " : "";
    });
}

/** Return the length of *text* in UTF-8. */
export function utf8Bytes(text) {
  return encoder.encode(text).length;
}

/** Return the lines of a text that was typed or pasted, without the empty ones. */
export function typedLines(text) {
  return text.split(/\r\n|\r|\n/u).filter((line) => line.trim() !== "");
}

/**
 * Return the parts of *text* in order: `{kind: "text" | "link" | "mention", text, href?}`.
 *
 * Only `http:` and `https:` become links.  *name* is ours; empty if we have none to mention.
 */
export function segments(text, name = "") {
  const found = [];
  for (const match of text.matchAll(LINK)) {
    if (found.length >= MAX_SEGMENTS) break;
    const link = trimmed(match[0]);
    const href = addressOf(link);
    if (href) found.push({ start: match.index, end: match.index + link.length, kind: "link", href });
  }
  const pattern = mentionPattern(name);
  if (pattern) {
    for (const match of text.matchAll(pattern)) {
      if (found.length >= MAX_SEGMENTS) break;
      const [start, end] = [match.index, match.index + match[0].length];
      if (!found.some((other) => other.kind === "link" && start < other.end && other.start < end)) {
        found.push({ start, end, kind: "mention" });
      }
    }
  }
  found.sort((one, other) => one.start - other.start);
  const parts = [];
  let at = 0;
  for (const { start, end, kind, href } of found) {
    if (start > at) parts.push({ kind: "text", text: text.slice(at, start) });
    const part = { kind, text: text.slice(start, end) };
    parts.push(href ? { ...part, href } : part);
    at = end;
  }
  if (at < text.length) parts.push({ kind: "text", text: text.slice(at) });
  return parts;
}

/** Return whether *text* mentions *name*, as a word of its own. */
export function mentions(text, name) {
  return mentionPattern(name)?.test(text) ?? false;
}

let compiled = { name: "", pattern: null };

function mentionPattern(name) {
  if (!name) return null;
  if (compiled.name !== name) {
    const escaped = name.replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&");
    // Scripts that are written without spaces, and Korean, which attaches particles to names.
    const [first, last] = [[...name][0], [...name].at(-1)];
    const before = UNSPACED.test(first) ? "" : `(?<![${WORD}])`;
    const after = UNSPACED.test(last) ? "" : `(?![${WORD}])`;
    compiled = { name, pattern: new RegExp(`${before}@?${escaped}${after}`, "giu") };
  }
  if (compiled.pattern) compiled.pattern.lastIndex = 0;
  return compiled.pattern;
}

/** Return *link* without the punctuation that ends a sentence, or an unbalanced bracket. */
function trimmed(link) {
  const unopened = { ")": count(link, ")") - count(link, "("), "]": count(link, "]") - count(link, "[") };
  let end = link.length;
  for (; end > 0; end--) {
    const last = link[end - 1];
    if (".,;:!?'*_~”’»".includes(last)) continue;
    if (!(unopened[last] > 0)) break;
    unopened[last] -= 1;
  }
  return link.slice(0, end);
}

const count = (text, character) => text.split(character).length - 1;

function addressOf(link) {
  try {
    const url = new URL(link);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : "";
  } catch {
    return "";
  }
}
