// The page: connects the chat, the WebSocket, and the screen.
//
// In one direction: an action of the user or a message changes the `Chat`, which returns effects;
// then everything is drawn once, with the next frame.

import { Attention } from "./attention.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Dialogs } from "./dialogs.js";
import { byId, oncePerFrame } from "./dom.js";
import { Log } from "./log.js";
import { STATES } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { Socket } from "./socket.js";
import { lastName, prefix, rememberName, Tab } from "./tab.js";

const TOLD_MILLISECONDS = 8000;

// Below this width, style.css makes the list of members a drawer.
const NARROW = matchMedia("(max-width: 1000px)");

const tab = new Tab();
const saved = await tab.open(() => chat.keep());
const chat = new Chat({ saved, prefix, isPrivate: isSecureContext });
const attention = new Attention((key) => show(key));
const draw = oncePerFrame(drawNow);
const log = new Log({
  loadOlder: (conversation) => chat.loadOlder(conversation) && socket.flush(),
  changed: draw,
  retry: (conversation, item) => run(chat.retry(conversation, item)),
  discard: (conversation, item) => {
    conversation.remove(item);
    draw();
  },
  write: (item) => write(item.name),
});
const sidebar = new Sidebar({ show, leave: (key) => run(chat.leave(chat.conversations.get(key))), write });
const composer = new Composer({
  send,
  place: () => chat.shown,
  ask: (lines) => dialogs.pasted(lines, chat.shown),
  words: () => ({ names: [...chat.shown.members.values()].filter((name) => name !== chat.me.name), rooms: chat.rooms.map((each) => each.title) }),
  limit: () => chat.session.limits.line,
  typed: (text) => {
    chat.shown.draft = text;
    tab.saveSoon();
  },
});
const dialogs = new Dialogs({
  isPrivate: isSecureContext,
  join,
  ask: (request, name) => {
    const isAsked = chat.ask(request, name, { dialog: true, isTyped: true });
    socket.flush();
    return isAsked;
  },
  password: (password) => {
    chat.session.setPassword(password);
    socket.now();
  },
  prepare: (name, form) => {
    byId("name-account").hidden = Boolean(chat.me.account);
    const field = form?.elements.namedItem("name");
    const isUnnamed = chat.me.client === null || /^Client \d+$/u.test(chat.me.name);
    if (field) field.value = isUnnamed ? offeredName(name) : chat.me.name;
  },
});
const socket = new Socket(chat, (effects) => run(effects));
let drawnKey = null;
let toldTimer = 0;

/** Carry out the effects of a change, send what there is to send, and draw. */
function run(effects) {
  for (const effect of effects) carryOut(effect);
  socket.flush();
  tab.saveSoon();
  draw();
}

function carryOut(effect) {
  switch (effect.type) {
    case "heard":
      attention.notify(effect.conversation, effect.item);
      if (effect.conversation.key === chat.current || effect.item.isMention) attention.say(`${effect.item.name}: ${effect.item.text}`);
      break;
    case "announced":
      attention.say(effect.text);
      break;
    case "told":
      tell(effect.text, effect.isError);
      break;
    case "opened":
      show(effect.key);
      dialogs.close("rooms");
      break;
    case "dialog":
      if (effect.name === "rooms") dialogs.rooms();
      else dialogs.open(effect.name);
      break;
    case "answered":
      dialogs.answered(effect.purpose, effect.event);
      break;
    case "password":
      dialogs.open("password", effect.isWrong ? "That was not the password." : "");
      break;
    case "name":
    case "login":
      dialogs.open(effect.type, effect.text);
      break;
    case "online":
      if (chat.me.client !== null && !/^Client \d+$/u.test(chat.me.name)) rememberName(chat.me.name);
      break;
  }
}

/** The name that a dialog offers; none in a duplicated tab, as the first tab has the last name. */
function offeredName(dialog) {
  return tab.isDuplicate && dialog !== "login" ? "" : lastName();
}

/** Show a text in the status line for a while. */
function tell(text, isError = false) {
  const place = byId("told");
  place.textContent = text;
  place.classList.toggle("error", isError);
  place.hidden = text === "";
  clearTimeout(toldTimer);
  if (text) toldTimer = setTimeout(() => tell(""), TOLD_MILLISECONDS);
  draw();
}

function join(name, passphrase) {
  chat.me.name = name;
  chat.credentials = passphrase === null ? null : { name, passphrase };
  if (name) rememberName(name);
  socket.now();
  composer.focus();
}

/** Send a line that was typed in *conversation*; return whether it was taken. */
function send(line, conversation) {
  tell(""); // about the line before
  const effects = chat.typed(conversation, line);
  run(effects);
  const isTaken = !effects.some((effect) => effect.isError);
  if (isTaken && conversation === chat.shown) log.toEnd();
  return isTaken;
}

function show(key) {
  if (!chat.conversations.has(key)) return;
  chat.show(key);
  closeDrawers();
  run([]);
  drawNow();
  if (!matchMedia("(pointer: coarse)").matches) composer.focus();
}

function write(name) {
  if (name === chat.me.name) return;
  show(chat.direct(name).key);
}

// Drawing ------------------------------------------------------------------------------------------

function drawNow() {
  const { shown, session } = chat;
  byId("title").textContent = shown.title;
  byId("sign").hidden = shown.kind !== "room";
  byId("topic").textContent = shown.kind === "room" ? shown.topic : "Only the two of you";
  byId("topic").title = shown.topic;
  log.keepPlace(() => drawBanner(session));
  if (drawnKey !== shown.key) {
    drawnKey = shown.key;
    byId("log").setAttribute("aria-label", `Messages: ${shown.title}`);
    composer.open(shown.draft, shown.kind === "room" ? `Message #${shown.title}` : `Message ${shown.title}`);
  }
  log.draw(shown, chat.me.name, chat.ignored);
  chat.attend(isSeen());
  sidebar.draw(chat);
  const all = [...chat.conversations.values()];
  attention.count(
    `${shown.kind === "room" ? "#" : ""}${shown.title} · multichat`,
    all.reduce((sum, each) => sum + each.unread, 0),
    all.reduce((sum, each) => sum + each.mentions, 0),
  );
}

/** Whether the user is looking at the newest message of the shown conversation. */
function isSeen() {
  return document.visibilityState === "visible" && document.hasFocus() && log.isAtEnd && !dialogs.isOpen;
}

/** Note whether the user is looking: messages are unread otherwise, also before the next frame. */
function lookChanged() {
  if (!isSeen()) chat.attend(false);
  draw();
}

function drawBanner({ state, reason }) {
  const banner = byId("banner");
  const texts = {
    [STATES.waiting]: `Offline: ${reason}. Trying again in ${socket.retrySeconds} s. What you type is kept and sent then.`,
    [STATES.idle]: dialogs.isOpen ? "" : "You have not joined yet.",
    [STATES.ended]: `Disconnected: ${reason}.`,
    [STATES.password]: "This server asks for a password.",
  };
  const isAgain = state === STATES.connecting && banner.dataset.state === STATES.waiting;
  const text = isAgain ? "Connecting…" : (texts[state] ?? "");
  banner.hidden = text === "";
  if (!isAgain) banner.dataset.state = state;
  const place = byId("banner-text");
  if (place.textContent !== text) place.textContent = text;
  byId("banner-button").textContent = state === STATES.password ? "Type it" : state === STATES.ended ? "Connect again" : state === STATES.idle ? "Join" : "Try now";
}

// The rest of the page -----------------------------------------------------------------------------

function closeDrawers() {
  byId("app").classList.remove("show-sidebar", "show-people");
  byId("menu").setAttribute("aria-expanded", "false");
  const isShown = !NARROW.matches && !byId("app").classList.contains("hide-people");
  byId("people-toggle").setAttribute("aria-expanded", String(isShown));
}

function toggleDrawer(button, name) {
  const isOpen = byId("app").classList.contains(name);
  closeDrawers();
  byId("app").classList.toggle(name, !isOpen);
  button.setAttribute("aria-expanded", String(!isOpen));
}

function menuOpened() {
  const isNamed = Boolean(chat.me.account);
  for (const id of ["menu-login", "menu-register"]) byId(id).hidden = isNamed;
  for (const id of ["menu-logout", "menu-passphrase"]) byId(id).hidden = !isNamed;
  byId("notify-toggle").textContent = attention.isOn ? "Turn notifications off" : "Turn notifications on";
  byId("notify-toggle").hidden = !attention.canAsk;
  byId("notify-why").textContent = attention.whyOff;
}

byId("menu").addEventListener("click", (event) => toggleDrawer(event.currentTarget, "show-sidebar"));
byId("people-toggle").addEventListener("click", (event) => {
  if (NARROW.matches) toggleDrawer(event.currentTarget, "show-people");
  else event.currentTarget.setAttribute("aria-expanded", String(!byId("app").classList.toggle("hide-people")));
});
byId("shade").addEventListener("click", closeDrawers);
byId("add-room").addEventListener("click", () => dialogs.rooms());
byId("help").addEventListener("click", () => dialogs.open("help"));
byId("banner-button").addEventListener("click", () => {
  if (chat.session.state === STATES.password) dialogs.open("password");
  else if (chat.session.state === STATES.idle) dialogs.join();
  else socket.now();
});
byId("me").addEventListener("click", () => {
  menuOpened();
  closeDrawers();
  dialogs.open("me");
});
for (const name of ["name", "login", "register", "passphrase"]) {
  byId(`menu-${name}`).addEventListener("click", () => {
    dialogs.close("me");
    dialogs.open(name);
  });
}
byId("menu-logout").addEventListener("click", () => {
  dialogs.close("me");
  run(chat.typed(chat.shown, "/logout"));
});
byId("notify-toggle").addEventListener("click", async () => {
  await attention.toggle();
  menuOpened();
});
document.addEventListener("keydown", (event) => {
  if (event.isComposing || dialogs.isOpen) return;
  if (event.key === "Escape") {
    closeDrawers();
    log.toEnd();
    composer.focus();
  }
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const keys = [...chat.rooms, ...chat.directs].map((each) => each.key);
  const digit = /^Digit([1-9])$/u.exec(event.code);
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const at = digit ? Number(digit[1]) - 1 : step ? (keys.indexOf(chat.current) + step + keys.length) % keys.length : -1;
  if (at < 0 || at >= keys.length) return;
  event.preventDefault();
  show(keys[at]);
});
for (const name of ["focus", "blur"]) window.addEventListener(name, lookChanged);
document.addEventListener("visibilitychange", lookChanged);
for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", draw);

NARROW.addEventListener("change", closeDrawers);
closeDrawers();
byId("app").hidden = false;
drawNow();
if (saved?.token || saved?.outbox?.length) {
  socket.now();
  composer.focus();
} else {
  dialogs.join();
  draw(); // without the banner, which would say the same as the dialog
}
