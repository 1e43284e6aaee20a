// Building elements.  Text becomes text nodes, never markup.

/**
 * Return a new element: *options* are properties (`className`, `onclick`), `data-` and `aria-`
 * attributes; *children* are elements or strings, and what is null is left out.
 */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (value === null || value === undefined) continue;
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return the element of the page with this *id*. */
export function byId(id) {
  return document.getElementById(id);
}

/** Return a name, isolated from the direction of what is around it. */
export function nameElement(name, className = "") {
  return element("bdi", { className }, name);
}

const NAMESPACE = "http://www.w3.org/2000/svg";

/** Return a drawn icon from *path*, which screen readers skip. */
export function icon(path) {
  const svg = document.createElementNS(NAMESPACE, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const drawn = document.createElementNS(NAMESPACE, "path");
  drawn.setAttribute("d", path);
  svg.append(drawn);
  return svg;
}

export const ICONS = Object.freeze({
  close: "M5 5l10 10M15 5L5 15",
  plus: "M10 4v12M4 10h12",
  leave: "M5 5l10 10M15 5L5 15",
});

// A hidden page has no frames, but its title and icon are still updated.
const HIDDEN_MILLISECONDS = 250;

const FRAME_MILLISECONDS = 17;

/**
 * Return *make* such that several calls before the next frame are one.
 *
 * After each call the page does other work for as long as the call took: otherwise a flood of
 * messages would be drawn one by one.
 */
export function oncePerFrame(make) {
  let frame = 0;
  let timer = 0;
  let earliest = 0;
  const now = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    timer = 0;
    const begun = performance.now();
    make();
    const ended = performance.now();
    earliest = ended + (ended - begun);
  };
  return () => {
    if (timer !== 0) return;
    const wait = earliest - performance.now();
    if (wait <= FRAME_MILLISECONDS) frame = requestAnimationFrame(now);
    timer = setTimeout(now, wait <= FRAME_MILLISECONDS ? HIDDEN_MILLISECONDS : wait);
  };
}
