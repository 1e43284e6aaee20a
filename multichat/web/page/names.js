// How people and rooms are distinguished on the screen.  Pure: no DOM.

/** The number of colours for names in style.css: `.hue-0` and so on. */
export const HUES = 12;

/** Return the colour of *name*: the same in every page, whatever its case. */
export function hueOf(name) {
  let hash = 2166136261;
  for (const character of name.toLowerCase()) {
    hash = Math.imul(hash ^ character.codePointAt(0), 16777619);
  }
  return (hash >>> 0) % HUES;
}

/** Return one or two characters for the picture beside a name. */
export function initialsOf(name) {
  const number = /^Client (\d+)$/u.exec(name);
  if (number) return number[1].slice(-2);
  const words = name.split(/[-_. ]+/u).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words[1]] : [words[0] ?? "?"];
  return letters.map((word) => [...word][0]).join("").toUpperCase();
}

/** Return what `direct` needs as `to`: the number of a client without a name, or the name. */
export function recipientOf(name) {
  const number = /^Client (\d+)$/u.exec(name);
  return number ? Number(number[1]) : name;
}

/** Return the key of the conversation with a room, or with a person. */
export const roomKey = (room) => `#${fold(room)}`;
export const directKey = (name) => `@${fold(name)}`;

/** Return *name* so that equal names are equal. */
export function fold(name) {
  return name.normalize("NFKC").toLowerCase();
}
