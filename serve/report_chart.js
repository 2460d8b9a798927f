// One plot: axes, and series that the buttons of the legend show and hide.
const WIDTH = 460, HEIGHT = 330, DIGIT = 9, LEFT = 24, RIGHT = 12, TOP = 16, BOTTOM = 42;

// frame: {x: [low, high], y: [low, high], xLabel, yLabel}. Returns the SVG and its two scales.
function plot(host, frame, height = HEIGHT) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img" }, host);
  picture.setAttribute("aria-label", `${host.querySelector("figcaption").textContent}. `
    + `Across: ${frame.xLabel}. Up: ${frame.yLabel}.`);
  const scale = (range, from, to) => (value) =>
    from + ((value - range[0]) / (range[1] - range[0] || 1)) * (to - from);
  const y = scale(frame.y, height - BOTTOM, TOP);
  const rows = ticks(...frame.y);
  const left = LEFT + DIGIT * Math.max(3, ...rows.map((value) => String(value).length));
  const x = scale(frame.x, left, WIDTH - RIGHT);
  for (const value of rows) {
    svg("line", { x1: left, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }, picture);
    svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, picture, String(value));
  }
  for (const value of frame.xTicks || ticks(...frame.x)) {
    svg("text", { x: x(value), y: height - BOTTOM + 17, "text-anchor": "middle" }, picture, String(value));
  }
  const floor = height - BOTTOM;
  svg("line", { x1: left, x2: WIDTH - RIGHT, y1: floor, y2: floor, class: "axis" }, picture);
  svg("text", { x: (left + WIDTH - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, picture, frame.xLabel);
  const middle = (TOP + floor) / 2;
  svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` },
    picture, frame.yLabel);
  host.hidden = false;
  return { picture, x, y };
}

// series: {name, points: [[x, y], ...] with null for a gap, bars: [[x, low, high], ...], off}.
// frame.steps: a value holds from the point before on, as in the area that is the average precision.
function lines(host, frame, series) {
  const { picture, x, y } = plot(host, frame);
  if (frame.diagonal) {
    svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "guide" }, picture);
  }
  for (const [at, text] of frame.marks || []) {
    svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "guide" }, picture);
    svg("text", { x: x(at) + 3, y: TOP - 3 }, picture, text);
  }
  const groups = series.map((one, i) => {
    const group = svg("g", { class: `s${i % 7}` }, picture);
    for (const [at, low, high] of one.bars || []) {
      svg("line", { x1: x(at), x2: x(at), y1: y(low), y2: y(high), class: "bar-line" }, group);
    }
    const path = one.points.map(([a, b], k) => {
      if (a === null || b === null) return "";
      const before = k && one.points[k - 1][1] !== null;
      const across = x(a).toFixed(1), up = y(b).toFixed(1);
      return before && frame.steps ? `V${up}H${across}` : `${before ? "L" : "M"}${across} ${up}`;
    });
    svg("path", { d: path.join(""), class: `line ${dash(i)}` }, group);
    if (one.points.length <= 30) {
      for (const [a, b] of one.points) {
        if (a !== null && b !== null) svg("circle", { cx: x(a), cy: y(b), r: 2.6, class: "dot" }, group);
      }
    }
    return group;
  });
  legend(host, series, groups, (key, i) => svg("path", { d: "M1 6 H29", class: `line ${dash(i)}` }, key));
}

function dash(i) {
  return ["", "d1", "d2"][Math.floor(i / 7) % 3];
}

// A button per series; nothing where there is only one and it has no name.
function legend(host, series, groups, draw) {
  if (series.length === 1 && !series[0].name) return;
  const row = html("div", { class: "legend", role: "group", "aria-label": "Show or hide" }, host);
  series.forEach((one, i) => {
    const button = html("button", { type: "button" }, row);
    draw(svg("svg", { viewBox: "0 0 30 12", "aria-hidden": "true", class: `s${i % 7}` }, button), i);
    html("span", {}, button, one.name);
    const show = (on) => {
      button.setAttribute("aria-pressed", String(on));
      groups[i].toggleAttribute("hidden", !on);
    };
    show(!one.off);
    button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
  });
}
