// Gradient norm and learning rate: one thin line for each run, a colour for each arm.
"use strict";
window.kablateCharts = (window.kablateCharts || []).concat((page) => {
  const { data, layout, wholeTicks, draw, look, shorten, hidden } = page;
  if (!document.getElementById("training-chart")) return;
  const { panels, arms } = data.training;
  const shown = panels.filter(([key]) => arms.some((arm) =>
    arm.runs.some((run) => run[key].some((value) => value !== null))));
  const traces = shown.flatMap(([key], panel) => arms.flatMap((arm) =>
    arm.runs.map((run, number) => ({
      type: "scatter", mode: "lines", x: run.x, y: run[key],
      xaxis: "x", yaxis: panel ? `y${panel + 1}` : "y",
      name: shorten(arm.label, 34), legendgroup: arm.label,
      showlegend: panel === 0 && number === 0,
      visible: hidden.has(arm.label) ? "legendonly" : true,
      hovertemplate: `%{y:.4g}<extra>seed ${Number(run.seed)}</extra>`,
      opacity: 0.75, line: { color: look(arm.place).colour, dash: look(arm.place).dash, width: 1 },
    }))));
  const shape = layout("optimizer updates", "", {});
  const axis = shape.yaxis;
  shown.forEach(([key, title], i) => {
    const step = 1 / shown.length, top = 1 - i * step;
    shape[i ? `yaxis${i + 1}` : "yaxis"] = {
      ...axis, title: { text: title }, domain: [top - step * 0.88, top],
      ...(key === "grad_norm" ? { type: "log", dtick: "D2", tickformat: "~g" } : { rangemode: "tozero" }),
    };
  });
  const ends = arms.flatMap((arm) => arm.runs.map((run) => run.x.at(-1) || 0));
  Object.assign(shape.xaxis, wholeTicks(Math.max(...ends)));
  shape.xaxis.anchor = shown.length > 1 ? `y${shown.length}` : "y";
  draw("training-chart", traces, shape);
});
