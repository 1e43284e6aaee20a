// Which rows the log draws: messages grouped by sender, lines between days, the line above what is
// unread; and which part of a long conversation is drawn at all.  Pure: no DOM.

// A pause that is longer begins a new group.
const GROUP_MILLISECONDS = 5 * 60 * 1000;

const dayOf = (time) => new Date(time).toDateString();

/**
 * Return the rows for `items[start:end]`: `{key, signature, kind, item?, isHead?, time?}`.
 *
 * A row with the same key and signature looks the same.  Messages of *ignored* clients are left
 * out.
 */
export function rowsOf(items, start, end, divider = null, ignored = null) {
  const rows = [];
  let before = null;
  let day = start > 0 ? dayOf(items[start - 1].time) : "";
  for (let at = start; at < end; at++) {
    const item = items[at];
    if (item.kind === "said" && !item.isOwn && ignored?.has(item)) continue;
    const itsDay = dayOf(item.time);
    if (itsDay !== day) {
      rows.push({ key: `d${item.key}`, signature: itsDay, kind: "day", time: item.time });
      [day, before] = [itsDay, null];
    }
    if (item === divider) {
      rows.push({ key: "divider", signature: "", kind: "divider" });
      before = null;
    }
    const isHead = item.kind === "said" && !continues(before, item);
    rows.push({ key: item.key, signature: `${item.version} ${isHead}`, kind: item.kind, item, isHead });
    before = item;
  }
  return rows;
}

function continues(before, item) {
  return (
    before?.kind === "said" &&
    !before.isAct &&
    !item.isAct &&
    before.name === item.name &&
    before.client === item.client &&
    item.time - before.time < GROUP_MILLISECONDS
  );
}

/** The part of a conversation that is drawn: its end, or the surroundings of the text being read. */
export class RowWindow {
  /** At first *size* items, *step* more at an end that is scrolled to, at most *most*. */
  constructor({ size = 100, step = 60, most = 260 } = {}) {
    this.size = size;
    this.step = step;
    this.most = most;
    this.isFollowing = true;
    this._first = null;
    this._last = null;
    this._wasAtEnd = true;
  }

  /** Return the indexes `[start, end]` of what is drawn of *items* now. */
  range(items) {
    let end = items.length;
    let start = Math.max(0, end - this.size);
    if (!this.isFollowing && this._first) {
      start = items.indexOf(this._first);
      const last = items.lastIndexOf(this._last);
      if (start < 0 || last < start) start = Math.max(0, start, end - this.size);
      else end = this._wasAtEnd ? items.length : last + 1;
      end = Math.min(end, start + this.most);
    }
    this._keep(items, start, end);
    return [start, end];
  }

  _keep(items, start, end) {
    this._first = items[start] ?? null;
    this._last = items[end - 1] ?? null;
    this._wasAtEnd = end === items.length;
  }

  /** Draw older items; return false if there are none in memory. */
  up(items) {
    const [start, end] = this.range(items);
    if (start === 0) return false;
    this.isFollowing = false;
    const first = Math.max(0, start - this.step);
    this._keep(items, first, Math.min(end, first + this.most));
    return true;
  }

  /** Draw newer items; return false if the end is drawn. */
  down(items) {
    const [start, end] = this.range(items);
    if (end === items.length) return false;
    const last = Math.min(items.length, end + this.step);
    this._keep(items, Math.max(start, last - this.most), last);
    return true;
  }

  /** Keep what is drawn while the user reads it. */
  hold(items) {
    if (!this.isFollowing) return;
    this.range(items);
    this.isFollowing = false;
  }

  /** Draw the end, and follow it. */
  follow(size = this.size) {
    this.isFollowing = true;
    this.size = Math.min(size, this.most);
  }
}
