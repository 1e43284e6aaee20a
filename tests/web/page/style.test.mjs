// The colours of style.css are legible: WCAG's contrast of at least 4.5 for every pair with text.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { HUES } from "../../../multichat/web/page/names.js";

const css = readFileSync(new URL("../../../multichat/web/page/style.css", import.meta.url), "utf8");
const colours = (text) => new Map([...text.matchAll(/--([\w-]+): (#[0-9a-f]{6});/gu)].map(([, name, value]) => [name, value]));
const dark = /@media \(prefers-color-scheme: dark\) \{\s*:root \{([^}]*)\}/u.exec(css)[1];
const themes = { light: colours(/:root \{([^}]*)\}/u.exec(css)[1]), dark: colours(dark) };

function luminance(channels) {
  const [r, g, b] = channels.map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const channelsOf = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16) / 255);

function contrast(one, other) {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

const PAIRS = [
  ...["ground", "side", "raised", "hover", "chosen", "mention"].map((ground) => ["ink", ground]),
  ...["ground", "side", "raised", "hover", "mention"].map((ground) => ["soft", ground]),
  ...["ground", "raised", "hover", "mention"].flatMap((ground) => [["accent", ground], ["alert", ground]]),
  ["ink", "mark"], ["on-accent", "accent"], ["on-alert", "alert"], ["on-warn", "warn"], ["side", "soft"], ["soft", "chosen"],
];

for (const [theme, values] of Object.entries(themes)) {
  test(`text is legible: ${theme}`, () => {
    for (const [ink, ground] of PAIRS) {
      const measured = contrast(channelsOf(values.get(ink)), channelsOf(values.get(ground)));
      assert.ok(measured >= 4.5, `${ink} on ${ground}: ${measured.toFixed(2)}`);
    }
  });

  test(`names and pictures are legible: ${theme}`, () => {
    for (let hue = 0; hue < HUES; hue++) {
      const ink = channelsOf(values.get(`hue-${hue}`));
      for (const name of ["ground", "hover", "mention"]) {
        const measured = contrast(ink, channelsOf(values.get(name)));
        assert.ok(measured >= 4.5, `hue-${hue} on ${name}: ${measured.toFixed(2)}`);
      }
      const picture = channelsOf(values.get("ground")).map((each, at) => 0.89 * each + 0.11 * ink[at]);
      assert.ok(contrast(ink, picture) >= 4.5, `hue-${hue} on its picture: ${contrast(ink, picture).toFixed(2)}`);
    }
  });
}

test("there is a class for every colour, without inline styles", () => {
  for (let hue = 0; hue < HUES; hue++) assert.ok(css.includes(`.hue-${hue} { --hue: var(--hue-${hue}); }`));
});
