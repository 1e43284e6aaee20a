// The dialogs: entering the chat, the server's password, accounts, rooms, several pasted lines, help.
//
// Each is a native `<dialog>` of index.html, which keeps the focus inside and closes on Escape.  A
// dialog that waits for the server's answer shows its error and stays.

import { COMMANDS, NOT_PRIVATE, usage } from "./commands.js";
import { byId, element, nameElement } from "./dom.js";

const MIN_PASSPHRASE = 8;

// How to log in from the input field; a dialog has a button for it.
const TYPED_LOGIN = /: \/login .*$/u;

const KEYS = [
  ["Alt 1 … 9", "go to a conversation"],
  ["Alt ↑ ↓", "previous or next conversation"],
  ["Enter", "send"],
  ["Shift Enter", "another line, which is another message"],
  ["↑", "what was sent before"],
  ["Tab", "complete a command or a name"],
  ["Esc", "back to the newest message"],
];

export class Dialogs {
  /** *actions* are functions of the page: `join`, `login`, `register`, `name`, `password` … */
  constructor(actions) {
    this._actions = actions;
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector(".dismiss")?.addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.classList.contains("light") && dialog.close());
    }
    this._onSubmit("join", (fields) => this._join(fields));
    this._onSubmit("password", ({ password }) => {
      byId("password-dialog").close();
      actions.password(password);
    });
    this._onSubmit("login", ({ name, passphrase }) => this._ask("login", { type: "login", name, passphrase }));
    this._onSubmit("register", ({ passphrase, again }) => this._twice("register", passphrase, again));
    this._onSubmit("passphrase", ({ passphrase, again }) => this._twice("passphrase", passphrase, again));
    this._onSubmit("name", ({ name }) => this._ask("name", { type: "name", name }));
    this._onSubmit("rooms", ({ room }) => room.trim() && this._enter(room.trim().replace(/^#+/u, "")));
    byId("join-account").addEventListener("click", () => this._withAccount(byId("join-passphrase").hidden));
    byId("name-account").addEventListener("click", () => this._logInAs(byId("name-field").value));
    byId("join-dialog").addEventListener("cancel", (event) => event.preventDefault());
    this._fillHelp();
  }

  _onSubmit(name, submitted) {
    const form = byId(`${name}-form`);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      submitted(Object.fromEntries(new FormData(form)));
    });
  }

  get isOpen() {
    return document.querySelector("dialog[open]") !== null;
  }

  /** Open the dialog *name*; *error* says what went wrong before. */
  open(name, error = "") {
    const dialog = byId(`${name}-dialog`);
    const form = dialog.querySelector("form");
    if (!dialog.open) {
      form?.reset();
      this._actions.prepare(name, form);
      dialog.showModal();
    }
    this.fail(name, error);
    (dialog.querySelector("[autofocus]") ?? dialog.querySelector("input"))?.focus();
    dialog.scrollTop = 0;
  }

  close(name) {
    byId(`${name}-dialog`).close();
  }

  fail(name, error) {
    const place = byId(`${name}-error`);
    const text = error.replace(TYPED_LOGIN, "");
    if (place && place.textContent !== text) place.textContent = text;
  }

  /** The server has answered the request of a dialog. */
  answered(name, event) {
    if (name === "rooms-list") {
      if (event.type === "rooms") this._listRooms(event.rooms);
      return;
    }
    if (event.type === "error") this.fail(name, event.text);
    else this.close(name);
  }

  _ask(name, request) {
    this.fail(name, "");
    if (request.passphrase !== undefined && !this._actions.isPrivate) this.fail(name, NOT_PRIVATE);
    else if (!this._actions.ask(request, name)) this.fail(name, "You are offline. Please wait for the connection.");
  }

  _twice(name, passphrase, again) {
    if ([...passphrase].length < MIN_PASSPHRASE) this.fail(name, `A passphrase has at least ${MIN_PASSPHRASE} characters.`);
    else if (passphrase !== again) this.fail(name, "The two are not the same.");
    else this._ask(name, { type: name, passphrase });
  }

  /** The typed name is that of an account, and the user claims to own it. */
  _logInAs(name) {
    this.close("name");
    this.open("login");
    if (name.trim()) byId("login-name").value = name.trim();
  }

  // Entering the chat ------------------------------------------------------------------------------

  /** Ask the user for a name, before the first connection. */
  join() {
    this._withAccount(false);
    this.open("join");
  }

  _withAccount(isShown) {
    byId("join-passphrase").hidden = !isShown;
    byId("join-passphrase-field").required = isShown;
    byId("join-account").textContent = isShown ? "I have no account" : "I have an account";
    byId("join-account").setAttribute("aria-expanded", String(isShown));
    byId("join-submit").textContent = isShown ? "Log in" : "Join";
  }

  _join({ name, passphrase }) {
    const isLogin = !byId("join-passphrase").hidden;
    if (isLogin && !name.trim()) {
      this.fail("join", "Type the name of your account.");
      return;
    }
    if (isLogin && !this._actions.isPrivate) {
      this.fail("join", NOT_PRIVATE);
      return;
    }
    byId("join-dialog").close();
    this._actions.join(name.trim(), isLogin ? passphrase : null);
  }

  // Rooms ------------------------------------------------------------------------------------------

  rooms() {
    byId("rooms-list").replaceChildren(element("li", { className: "empty" }, "Asking the server…"));
    this.open("rooms");
    if (!this._actions.ask({ type: "rooms" }, "rooms-list")) this.fail("rooms", "You are offline. Please wait for the connection.");
  }

  _enter(room) {
    this._ask("rooms", { type: "enter", room });
  }

  _listRooms(rooms) {
    const sorted = rooms.slice(0, 200).sort((one, other) => other.members - one.members);
    byId("rooms-list").replaceChildren(
      ...sorted.map(({ room, members }) =>
        element(
          "li",
          {},
          element(
            "button",
            { type: "button", className: "choice", onclick: () => this._enter(room) },
            element("span", { className: "sign", "aria-hidden": "true" }, "#"),
            nameElement(room, "title"),
            element("span", { className: "members" }, members === 1 ? "1 person" : `${members} people`),
          ),
        ),
      ),
    );
  }

  // Several lines ----------------------------------------------------------------------------------

  /** Ask what to do with *lines* pasted in *conversation*: "lines", "one", or "" for nothing. */
  pasted(lines, { kind, title }) {
    const dialog = byId("paste-dialog");
    byId("paste-title").textContent = `Send ${lines.length} lines to ${kind === "room" ? "#" : ""}${title}?`;
    byId("paste-lines").textContent = lines.slice(0, 12).map((line) => line.slice(0, 200)).join("\n") + (lines.length > 12 ? "\n…" : "");
    byId("paste-send").textContent = `Send ${lines.length} messages`;
    return new Promise((resolve) => {
      dialog.returnValue = "";
      const closed = () => {
        if (dialog.open) return; // the event of an earlier dialog
        dialog.removeEventListener("close", closed);
        resolve(dialog.returnValue);
      };
      dialog.addEventListener("close", closed);
      dialog.showModal();
      byId("paste-send").focus();
    });
  }

  _fillHelp() {
    const listed = (pairs) => pairs.flatMap(([term, meaning]) => [element("dt", {}, term), element("dd", {}, meaning)]);
    for (const kind of ["help", "operators"]) {
      const lines = COMMANDS.filter((each) => each[kind]).map((each) => [usage(each), each[kind]]);
      byId(kind === "help" ? "help-commands" : "help-operators").append(...listed(lines));
    }
    byId("help-keys").append(...listed(KEYS));
  }
}
