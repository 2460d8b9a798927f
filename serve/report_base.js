// What every part uses. Text from data is set as text only, never as markup.
const TURNS = /[\u202a-\u202e\u2066-\u2069]/g; // as in serve/report_page.py
const RUNS = JSON.parse(document.getElementById("report-data").textContent, (_, value) =>
  (typeof value === "string" ? value.replace(TURNS, (one) => `\\u${one.charCodeAt(0).toString(16)}`) : value));
const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, parent, text) {
  return fill(document.createElementNS(SVG, name), attributes, parent, text);
}

function html(name, attributes, parent, text) {
  return fill(document.createElement(name), attributes, parent, text);
}

function fill(node, attributes, parent, text) {
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function percent(value) {
  return value === null ? "–" : `${(100 * value).toFixed(1)} %`;
}

// A proportion with Wilson's 95 % interval; null when nothing was counted.
function wilson(successes, total) {
  if (total === 0) return null;
  const z = 1.959963984540054, share = successes / total, z2 = z * z;
  const centre = (share + z2 / (2 * total)) / (1 + z2 / total);
  const spread = (share * (1 - share)) / total + z2 / (4 * total * total);
  const half = (z / (1 + z2 / total)) * Math.sqrt(spread);
  return { value: share, low: Math.max(0, centre - half), high: Math.min(1, centre + half) };
}

// Five or so round numbers from low to high.
function ticks(low, high) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(10)));
  }
  return found;
}

// A table that is wider than the page can be scrolled with the keyboard.
for (const box of document.querySelectorAll(".scroll")) {
  if (box.scrollWidth <= box.clientWidth) continue;
  const caption = box.querySelector("caption");
  fill(box, { tabindex: 0, role: "region", "aria-label": caption ? caption.textContent : "table" });
}
