// The input field: Enter sends, unless an input method is composing; a list completes commands and
// names; for a paste of several lines it asks once.

import { completions, mayHoldSecret } from "./commands.js";
import { byId, element } from "./dom.js";
import { typedLines, utf8Bytes } from "./text.js";

// Once fewer bytes of a line's limit are left, their number is shown.
const SHOW_REST_BELOW = 2000;

// An input method sends this code with the key that ends a composition.
const COMPOSING_KEY_CODE = 229;

export class Composer {
  /**
   * *send* takes a line and the conversation that it is for, and returns whether it was taken;
   * *place* returns the conversation that is shown; *ask* takes pasted lines, and returns what was
   * chosen; *words* returns what can be completed; *limit* the bytes in a line.
   */
  constructor({ send, place, ask, words, limit, typed }) {
    this._actions = { send, place, ask, words, limit, typed };
    this._field = byId("field");
    this._options = byId("completions");
    this._rest = byId("rest");
    this._shown = [];
    this._chosen = 0;
    this._history = [];
    this._at = null;
    this._field.addEventListener("keydown", (event) => this._key(event));
    this._field.addEventListener("input", () => this._changed());
    this._field.addEventListener("beforeinput", (event) => this._lineBreak(event));
    this._field.addEventListener("click", () => this._complete());
    this._field.addEventListener("blur", () => this._close());
    this._field.addEventListener("paste", (event) => void this._paste(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this._submit();
    });
  }

  get text() {
    return this._field.value;
  }

  /** Show another conversation's draft. */
  open(draft, label) {
    this._field.value = draft;
    this._field.setAttribute("aria-label", label);
    this._field.placeholder = label;
    this._at = null;
    this._changed();
    this._close();
  }

  focus() {
    this._field.focus();
  }

  _changed() {
    const left = this._actions.limit() - 200 - utf8Bytes(this._field.value);
    const isShown = left < SHOW_REST_BELOW;
    this._rest.hidden = !isShown;
    if (isShown) this._rest.textContent = left >= 0 ? `${left} bytes left` : `${-left} bytes too long`;
    this._rest.classList.toggle("over", left < 0);
    byId("send").disabled = this._field.value.trim() === "";
    this._complete();
    this._actions.typed(this._field.value);
  }

  _key(event) {
    if (event.isComposing || event.keyCode === COMPOSING_KEY_CODE) return;
    if (this._shown.length > 0 && this._completionKey(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this._submit();
    } else if (event.key === "ArrowUp" && (this._field.value === "" || this._at !== null)) {
      this._recall(event, -1);
    } else if (event.key === "ArrowDown" && this._at !== null) {
      this._recall(event, 1);
    }
  }

  /** On the keyboards of phones Enter may insert a line break instead of being a key. */
  _lineBreak(event) {
    if (event.inputType !== "insertLineBreak" || event.isComposing || !matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    this._submit();
  }

  /** The lines that were sent from this page, to be recalled as in a shell. */
  _recall(event, step) {
    const at = Math.min((this._at ?? this._history.length) + step, this._history.length);
    if (at < 0) return;
    event.preventDefault();
    this._at = at < this._history.length ? at : null;
    this._field.value = this._history[at] ?? "";
    this._changed();
    this._close();
  }

  _submit() {
    const lines = typedLines(this._field.value);
    if (lines.length === 0) return;
    const rest = this._sendLines(lines, this._actions.place());
    this._field.value = rest.join("\n");
    this._at = null;
    this._changed();
    this._close();
    this._field.focus();
  }

  /** Send *lines* in order in the conversation *place*; return those that were not taken. */
  _sendLines(lines, place) {
    for (let at = 0; at < lines.length; at++) {
      if (!this._actions.send(lines[at], place)) return lines.slice(at);
      if (!mayHoldSecret(lines[at])) this._history.push(lines[at]);
    }
    this._history.splice(0, this._history.length - 100);
    return [];
  }

  async _paste(event) {
    const pasted = event.clipboardData?.getData("text/plain") ?? "";
    if (!/[\r\n]/u.test(pasted.trim())) return;
    event.preventDefault();
    const { selectionStart, selectionEnd, value } = this._field;
    const lines = typedLines(value.slice(0, selectionStart) + pasted.replace(/[\r\n]+$/u, "") + value.slice(selectionEnd));
    const place = this._actions.place();
    const answer = await this._actions.ask(lines);
    let text = null;
    if (answer === "lines") {
      text = this._sendLines(lines.map((line) => (line.startsWith("/") ? `/${line}` : line)), place).join("\n");
    } else if (answer === "one") {
      text = lines.map((line) => line.trim()).join(" ");
    }
    // A notification may have led to another conversation meanwhile.
    if (text !== null && this._actions.place() === place) this._field.value = text;
    else if (text !== null) place.draft = text;
    this._changed();
    this._close();
    this._field.focus();
  }

  // Completion -----------------------------------------------------------------------------------

  _complete() {
    const { value, selectionStart, selectionEnd } = this._field;
    const found = selectionStart === selectionEnd ? completions(value, selectionStart, this._actions.words()) : [];
    const isTyped = found.length === 1 && value.slice(found[0].start, selectionStart) === found[0].text;
    this._shown = isTyped ? [] : found;
    this._chosen = 0;
    this._drawOptions();
  }

  _close() {
    this._shown = [];
    this._drawOptions();
  }

  _drawOptions() {
    this._options.hidden = this._shown.length === 0;
    this._options.replaceChildren(
      ...this._shown.map((each, at) =>
        element(
          "div",
          {
            id: `completion-${at}`,
            role: "option",
            className: "completion",
            "aria-selected": String(at === this._chosen),
            onmousedown: (event) => {
              event.preventDefault();
              this._take(at);
            },
          },
          element("bdi", { className: "word" }, each.shown),
          element("span", { className: "help" }, each.help),
        ),
      ),
    );
    if (this._shown.length > 0) this._field.setAttribute("aria-activedescendant", `completion-${this._chosen}`);
    else this._field.removeAttribute("aria-activedescendant");
  }

  /** Return whether the key was for the list. */
  _completionKey(event) {
    const many = this._shown.length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this._chosen = (this._chosen + (event.key === "ArrowDown" ? 1 : many - 1)) % many;
      this._drawOptions();
    } else if (event.key === "Tab" && !event.shiftKey) {
      this._take(this._chosen);
    } else if (event.key === "Enter" && this._field.value.slice(this._shown[this._chosen].start) !== this._shown[this._chosen].text) {
      if (this._field.value.startsWith("/") && /\s/u.test(this._field.value)) return false;
      this._take(this._chosen);
    } else if (event.key === "Escape") {
      this._close();
      event.stopPropagation();
    } else {
      return false;
    }
    event.preventDefault();
    return true;
  }

  _take(at) {
    const { text, start } = this._shown[at];
    const { value, selectionEnd } = this._field;
    const rest = value.slice(selectionEnd);
    const gap = rest.startsWith(" ") ? "" : " ";
    this._field.value = value.slice(0, start) + text + gap + rest;
    const cursor = start + text.length + 1;
    this._field.setSelectionRange(cursor, cursor);
    this._changed();
  }
}
