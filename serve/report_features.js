// t-SNE and the self-organising map. A class has a colour and a shape.
const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
  (x, y, r) => `M${x} ${y - r}l${r} ${2 * r}h${-2 * r}Z`,
  (x, y, r) => `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}Z`,
  (x, y, r) => `M${x} ${y + r}l${r} ${-2 * r}h${-2 * r}Z`,
];

function shape(i, x, y, r) {
  return SHAPES[(i + Math.floor(i / 7)) % SHAPES.length](x, y, r);
}

// A square picture without axes, and one group per class with its button.
function classPicture(host, classes, side, fillGroups) {
  const picture = svg("svg", { viewBox: `0 0 ${side} ${side}`, role: "img" }, host);
  picture.setAttribute("aria-label", host.querySelector("figcaption").textContent);
  svg("rect", { x: 0.5, y: 0.5, width: side - 1, height: side - 1, fill: "none", class: "grid" }, picture);
  const groups = classes.map((_, i) => svg("g", { class: `s${i % 7}` }, picture));
  fillGroups(groups);
  legend(host, classes.map((name) => ({ name })), groups,
    (key, i) => svg("path", { d: shape(i, 15, 6, 5), class: "dot" }, key));
  host.hidden = false;
}

function tsne(host, { classes, points }) {
  const side = 460, margin = 14;
  const scale = (column) => {
    const values = points.map((point) => point[column]);
    const low = Math.min(...values), high = Math.max(...values);
    return (value) => margin + ((value - low) / (high - low || 1)) * (side - 2 * margin);
  };
  const x = scale(0), y = scale(1);
  classPicture(host, classes, side, (groups) => {
    for (const [across, up, i, key, predicted] of points) {
      const mark = svg("path", { d: shape(i, x(across), side - y(up), 4), class: "dot", opacity: 0.8 }, groups[i]);
      svg("title", {}, mark, `${key}: ${classes[i]}, called ${predicted}`);
    }
  });
}

function som(host, { classes, cells, grid }) {
  const side = 460, cell = (side - 10) / grid;
  const most = Math.max(...cells.map((one) => one[3]));
  classPicture(host, classes, side, (groups) => {
    for (const [row, column, i, count] of cells) {
      const x = 5 + (column + 0.5) * cell, y = 5 + (row + 0.5) * cell;
      const radius = Math.max(2, 0.46 * cell * Math.sqrt(count / most));
      const mark = svg("path", { d: shape(i, x, y, radius), class: "dot" }, groups[i]);
      svg("title", {}, mark, `${count} images, most of them ${classes[i]}`);
    }
  });
}

for (const [kind, draw] of [["tsne", tsne], ["som", som]]) {
  for (const host of document.querySelectorAll(`[data-chart="${kind}"]`)) {
    draw(host, RUNS[host.dataset.run].features);
  }
}
