// The threshold slider: counts of metrics.json's `operating` at each of its steps.
for (const panel of document.querySelectorAll("[data-threshold]")) {
  const { operating, histograms } = RUNS[panel.dataset.threshold].evaluation;
  const part = Object.fromEntries(
    [...panel.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]));
  operating.classes.forEach((one, i) => html("option", { value: i }, part.label, one.label));
  part.range.max = operating.steps;
  part.range.value = operating.steps / 2;
  panel.hidden = false;
  let line = null;

  const share = (node, successes, total) => {
    const found = wilson(successes, total);
    node.textContent = percent(found && found.value);
    if (found) {
      html("small", {}, node,
        `95 % interval ${(100 * found.low).toFixed(1)} to ${(100 * found.high).toFixed(1)}; ${successes} of ${total}`);
    }
  };

  const read = () => {
    const step = Number(part.range.value);
    const one = operating.classes[part.label.value];
    const tp = one.true_positive[step], fp = one.false_positive[step];
    const counts = { tp, fn: one.positives - tp, fp, tn: one.negatives - fp };
    for (const [name, count] of Object.entries(counts)) part[name].textContent = count;
    share(part.sensitivity, tp, one.positives);
    share(part.specificity, counts.tn, one.negatives);
    share(part.precision, tp, tp + fp);
    const text = (step / operating.steps).toFixed(3);
    part.value.textContent = text;
    part.range.setAttribute("aria-valuetext", `probability ${text}`);
    if (line) line.move(step / operating.steps);
  };

  const relabel = () => {
    line = histogram(part.histogram, histograms.edges, histograms.classes[part.label.value]);
    read();
  };
  part.label.addEventListener("change", relabel);
  part.range.addEventListener("input", read);
  relabel();
}

// Shares of the images with and without the label in each bin. Returns what moves the line.
function histogram(host, edges, one) {
  host.querySelectorAll("svg, .legend").forEach((node) => node.remove());
  const shares = [one.with_label, one.without_label].map((counts) => {
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    return counts.map((count) => count / total);
  });
  const top = Math.max(...shares.flat(), 0.01);
  const frame = { x: [0, 1], y: [0, top * 1.05], xLabel: "probability", yLabel: "share of images" };
  const { picture, x, y } = plot(host, frame, 220);
  const groups = shares.map((values, i) => {
    const group = svg("g", { class: `s${1 - i}` }, picture);
    const steps = values.map((value, k) => `L${x(edges[k])} ${y(value)}L${x(edges[k + 1])} ${y(value)}`);
    const path = `M${x(0)} ${y(0)}${steps.join("")}L${x(1)} ${y(0)}`;
    svg("path", { d: `${path}Z`, class: "area" }, group);
    svg("path", { d: path, class: "outline" }, group);
    return group;
  });
  const names = [`with it (${one.with_label.reduce((a, b) => a + b, 0)})`,
    `without it (${one.without_label.reduce((a, b) => a + b, 0)})`];
  // The colours are told by the same class numbers as the groups': 1 with, 0 without.
  legend(host, names.map((name) => ({ name })), groups, (key, i) => {
    key.setAttribute("class", `s${1 - i}`);
    svg("rect", { x: 1, y: 1, width: 28, height: 10, class: "area" }, key);
    svg("rect", { x: 1, y: 1, width: 28, height: 10, class: "outline" }, key);
  });
  const mark = svg("line", { y1: TOP, y2: 220 - BOTTOM, class: "mark" }, picture);
  return { move: (at) => ["x1", "x2"].forEach((name) => mark.setAttribute(name, x(at))) };
}
