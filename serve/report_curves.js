// Training, ROC, precision-recall, calibration, deletion and insertion.
const UNIT = [0, 1];

function spread(columns, least) {
  const values = columns.flat().filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low) * 0.06 || 0.05;
  return [Math.max(least, low - pad), high + pad];
}

function epochs(host, stage, named, yLabel) {
  const series = named.filter(([, key]) => stage[key].some((value) => value !== null));
  if (!series.length) return;
  const count = stage[series[0][1]].length;
  const frame = {
    x: [0.5, count + 0.5], y: spread(series.map(([, key]) => stage[key]), 0),
    xLabel: "epoch", yLabel,
    xTicks: ticks(1, Math.max(2, count)).filter((value) => Number.isInteger(value)),
    marks: stage.phases.map((phase) => [phase.done + 0.5, String(phase.number)]),
  };
  lines(host, frame, series.map(([name, key]) => (
    { name, points: stage[key].map((value, i) => [i + 1, value]) })));
}

function byLabel(list, key, x, y) {
  return list.map((one) => ({ name: one[key], points: one[x].map((value, i) => [value, one[y][i]]) }));
}

const CURVES = {
  loss: (host, run, stage) => epochs(host, run.stages[stage],
    [["training", "train_loss"], ["validation", "val_loss"]], "loss"),
  validation: (host, run, stage) => epochs(host, run.stages[stage],
    [["accuracy", "val_accuracy"], ["mean AUROC", "val_auroc"]], "on validation"),
  roc: (host, run) => lines(host,
    { x: UNIT, y: UNIT, xLabel: "1 − specificity", yLabel: "sensitivity", diagonal: true },
    byLabel(run.evaluation.curves, "label", "false_positive_rate", "true_positive_rate")
      .map((one) => ({ ...one, points: [[0, 0], ...one.points] }))),
  pr: (host, run) => lines(host, { x: UNIT, y: UNIT, xLabel: "recall", yLabel: "precision", steps: true },
    byLabel(run.evaluation.curves, "label", "true_positive_rate", "precision")
      .map((one) => ({ ...one, points: [[0, one.points[0][1]], ...one.points] }))),
  calibration: (host, run) => lines(host,
    { x: UNIT, y: UNIT, xLabel: "mean probability", yLabel: "share that has the label", diagonal: true },
    run.evaluation.calibration.map((one, i) => ({
      name: one.label === null ? "the called class" : one.label,
      off: i > 0,
      points: one.curve.map((bin) => [bin[0], bin[1]]),
      bars: one.curve.map((bin) => [bin[0], bin[2], bin[3]]),
    }))),
  deletion: (host, run) => fraction(host, run, "deletion"),
  insertion: (host, run) => fraction(host, run, "insertion"),
};

function fraction(host, run, kind) {
  const { fractions, methods } = run.faithfulness;
  lines(host, { x: UNIT, y: UNIT, xLabel: "share of the image", yLabel: "probability" },
    methods.map((one) => ({ name: one.method, points: one[kind].map((value, i) => [fractions[i], value]) })));
}

for (const host of document.querySelectorAll("[data-chart]")) {
  const draw = CURVES[host.dataset.chart];
  if (draw) draw(host, RUNS[host.dataset.run], host.dataset.stage);
}
