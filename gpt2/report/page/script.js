// The report's behaviour. All data is in #data as JSON; texts from the results are
// only ever put in as text, and escaped for Plotly, which reads some HTML in labels.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const plain = (text) => String(text)
    .replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (text, n) => plain(text.length > n ? text.slice(0, n - 1) + "…" : text);
  const isNarrow = () => window.innerWidth < 700;

  // ---- tables ------------------------------------------------------------------

  const sortValue = (row, index) => row.cells[index].dataset.sort;
  function order(a, b) {
    if (a === "" || b === "") return (a === "") - (b === ""); // unknown values go last
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }
  function sortBy(table, head) {
    const index = head.cellIndex, body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const x = sortValue(a, index), y = sortValue(b, index);
      return x === "" || y === "" || !down ? order(x, y) : order(y, x);
    });
    body.append(...rows);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      const first = table.tBodies[0].rows[0];
      if (first && sortValue(first, head.cellIndex) === undefined) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(table, head));
      head.replaceChildren(button);
    }
  }

  // ---- theme -------------------------------------------------------------------

  const themes = ["auto", "light", "dark"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  const isDark = () => theme === "dark" || (theme === "auto" && dark.matches);
  function setTheme(name) {
    theme = name;
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
    try { localStorage.setItem("kablate-theme", name); } catch { /* not from a file */ }
    drawAll();
  }
  $("theme").addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(theme) + 1) % themes.length]);
  });
  dark.addEventListener("change", () => drawAll());

  // ---- charts ------------------------------------------------------------------

  const palettes = {
    light: ["#1a1a1a", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07A00", "#3795c9"],
    dark: ["#f0f0f0", "#4fa8e0", "#ff8a47", "#2fc796", "#e79ac4", "#e6b13a", "#8fd0f7"],
  };
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
  const shapes = ["circle", "square", "triangle-up", "diamond", "cross", "x", "star"];
  function look(place) {
    const colours = palettes[isDark() ? "dark" : "light"];
    if (place === 0) return { colour: colours[0], dash: "solid", shape: shapes[0] };
    const turn = Math.floor((place - 1) / 6);
    return {
      colour: colours[1 + (place - 1) % 6],
      dash: dashes[turn % dashes.length],
      shape: shapes[place % shapes.length],
    };
  }
  const faded = (hex) => hex + "2e";
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function layout(x, y, more) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
    const size = Math.max(11, parseFloat(getComputedStyle(root).fontSize) * 0.8);
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), size, family: "system-ui, sans-serif" },
      margin: { l: 10, r: 10, t: isNarrow() ? 10 : 32, b: 10 },
      modebar: {
        bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent"),
      },
      hoverlabel: { bgcolor: css("--paper"), font: { color: css("--ink") } },
      legend: isNarrow()
        ? { orientation: "h", y: -0.3, yanchor: "top" }
        : { orientation: "v", x: 1.02, y: 1 },
      xaxis: { ...axis, title: { text: x } },
      yaxis: { ...axis, title: { text: y } },
      ...more,
    };
  }
  // plotly draws at least five ticks, in a run of three updates at fractions of one
  const wholeTicks = (range) => (range <= 10 ? { dtick: 1 } : {});
  const config = () => ({
    showSendToCloud: false, plotlyServerURL: "", // results stay on this machine
    responsive: true, displaylogo: false, displayModeBar: isNarrow() ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
    toImageButtonOptions: { format: "svg" },
  });
  function draw(id, traces, shape) {
    if (traces.length) Plotly.react(id, traces, shape, config());
    else $(id).textContent = "There is nothing to draw yet.";
  }

  const picked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const LOSS = "loss (nats per token)";

  // differences with intervals; the wider, thinner one holds for all arms together
  function drawForest() {
    const rows = data.effects.filter((row) => row[picked("measure")].mean !== null);
    const of = (row) => row[picked("measure")];
    const names = rows.map((row, i) => `${i}`);
    const bar = (key, width) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false,
      line: { color: look(1).colour, width },
      x: rows.flatMap((r) => (of(r)[key] ? [...of(r)[key], null] : [null, null, null])),
      y: names.flatMap((n) => [n, n, null]),
    });
    const marks = {
      type: "scatter", mode: "markers", showlegend: false, hoverinfo: "text",
      x: rows.map((row) => of(row).mean), y: names,
      text: rows.map((row) => plain(of(row).text)),
      marker: { color: look(0).colour, size: 9, symbol: "diamond" },
    };
    const margin = data.margin;
    const ends = rows.flatMap((r) => [of(r).mean, ...(of(r).outer || of(r).inner || [])]);
    const low = Math.min(-margin, ...ends), high = Math.max(margin, ...ends);
    const room = 0.04 * (high - low);
    const title = isNarrow() ? "difference (nats per token)"
      : "difference in loss (nats per token), negative is better";
    const shape = layout(title, "", {
      shapes: [{
        type: "rect", xref: "x", yref: "paper", x0: -margin, x1: margin, y0: 0, y1: 1,
        fillcolor: css("--band"), line: { width: 0 }, layer: "below",
      }],
      height: 110 + 34 * Math.max(rows.length, 2),
    });
    // on a phone the arm alone: its partner is in the table of verdicts
    const label = (row) => (isNarrow() ? shorten(row.arm, 18) : shorten(row.label, 44))
      + ` <b>${of(row).mark}</b>`;
    Object.assign(shape.yaxis, {
      tickvals: names, ticktext: rows.map(label), type: "category",
      range: [rows.length - 0.5, -0.5],
    });
    shape.xaxis.range = [low - room, high + room];
    shape.xaxis.zerolinecolor = css("--ink");
    $("forest").style.height = `${shape.height}px`;
    draw("forest", rows.length ? [bar("outer", 1.5), bar("inner", 5), marks] : [], shape);
  }

  // smallest x at which one of the lines is between low and high; a steep start that is
  // above the chart is left out at the side as well
  function enters(lines, low, high) {
    return Math.min(...lines.map(([x, y]) => {
      const i = y.findIndex((value) => low <= value && value <= high);
      if (i < 1) return x[Math.max(i, 0)];
      const edge = y[i - 1] > high ? high : low;
      return x[i - 1] + (x[i] - x[i - 1]) * (edge - y[i - 1]) / (y[i] - y[i - 1]);
    }));
  }

  const hidden = new Set(data.arms.slice(8).map((arm) => arm.label));
  function drawLoss() {
    const axis = picked("axis"), kind = picked("kind");
    const relative = $("relative").checked;
    const unit = axis === "seconds" ? 60 : 1;
    const traces = [];
    let late = [];
    const means = [];
    for (const arm of data.arms) {
      const curve = (relative ? arm.differences : arm.curves)[kind][axis];
      if (!curve) continue;
      const style = look(arm.place);
      const x = curve.x.map((value) => value / unit);
      const common = {
        type: "scatter", x, legendgroup: arm.label, hoverinfo: "skip",
        visible: hidden.has(arm.label) ? "legendonly" : true,
      };
      const edge = { mode: "lines", line: { width: 0 }, showlegend: false };
      if (curve.seeds > 1) {
        const fill = { fill: "tonexty", fillcolor: faded(style.colour) };
        traces.push({ ...common, ...edge, y: curve.low });
        traces.push({ ...common, ...edge, ...fill, y: curve.high });
      }
      const y = curve.mean;
      if (!hidden.has(arm.label)) {
        means.push([x, y]);
        const ends = [...curve.low, ...curve.high];
        late = late.concat(ends.filter((_, i) => i % y.length >= Math.floor(y.length / 4)));
      }
      traces.push({
        ...common, y, mode: "lines", name: shorten(arm.label, 34), hoverinfo: "x+y+name",
        line: { color: style.colour, dash: style.dash, width: 2 },
      });
    }
    const low = Math.min(...late), high = Math.max(...late);
    const room = 0.05 * (high - low) || 0.05;
    const names = { step: "optimizer updates", tokens: "tokens", seconds: "minutes of training" };
    const title = relative ? `${LOSS}, minus the baseline's seed by seed` : LOSS;
    const shape = layout(names[axis], title, { hovermode: "closest" });
    if (late.length) {
      const left = enters(means, low - room, high + room);
      const right = Math.max(...means.map(([x]) => x.at(-1)));
      shape.yaxis.range = [low - room, high + room];
      shape.xaxis.range = [left - 0.02 * (right - left), right + 0.005 * (right - left)];
      if (axis === "step") Object.assign(shape.xaxis, wholeTicks(right - left));
    }
    shape.uirevision = `${axis} ${kind} ${relative} ${theme} ${[...hidden].length}`;
    draw("loss", traces, shape);
  }

  // values against a coordinate (Against in lib/plots.py): one line per arm, bars for
  // intervals, and level lines for arms that do not depend on the coordinate
  function drawAgainst(id, chart) {
    if (!chart) {
      Plotly.purge(id);
      return draw(id, [], {});
    }
    if (!$(id).querySelector(".plotly")) $(id).textContent = "";
    const traces = chart.series.map((one) => {
      const style = look(one.place);
      const common = {
        type: "scatter", name: shorten(one.label, isNarrow() ? 28 : 34),
        line: { color: style.colour, dash: one.is_level ? "dot" : style.dash, width: 2 },
      };
      if (one.is_level) {
        const ends = [chart.ticks[0][0], chart.ticks[chart.ticks.length - 1][0]];
        return { ...common, mode: "lines", x: ends, y: [one.y[0], one.y[0]] };
      }
      const beyond = (side) => one.y.map((y, i) => Math.abs((one[side][i] ?? y) - y));
      return {
        ...common, mode: "lines+markers", x: one.x, y: one.y,
        marker: {
          color: style.colour, symbol: style.shape, opacity: 1,
          size: one.x.map((x) => (x === one.best ? 15 : 9)),
        },
        error_y: {
          type: "data", array: beyond("high"), arrayminus: beyond("low"),
          color: style.colour, thickness: 1.5, width: 5,
        },
      };
    });
    const zone = chart.margin === null ? [] : [{
      type: "rect", xref: "paper", yref: "y", x0: 0, x1: 1, layer: "below",
      y0: -chart.margin, y1: chart.margin, fillcolor: css("--band"), line: { width: 0 },
    }];
    const title = isNarrow() ? "nats per token" : chart.ylabel;
    const shape = layout(plain(chart.xlabel), title, { shapes: zone, showlegend: true });
    Object.assign(shape.xaxis, {
      type: chart.scale, tickmode: "array", zeroline: false,
      tickvals: chart.ticks.map(([value]) => value),
      ticktext: chart.ticks.map(([, text]) => shorten(text, 14)),
      ...(chart.scale === "category" ? { categoryarray: chart.ticks.map(([v]) => v) } : {}),
    });
    if (chart.margin !== null) shape.yaxis.zerolinecolor = css("--ink");
    if (isNarrow()) shape.height = 320 + 20 * traces.length; // for the legend below
    $(id).style.height = isNarrow() ? `${shape.height}px` : "";
    draw(id, traces, shape);
  }

  function drawSweeps() {
    if (data.rates) drawAgainst("rates", data.rates);
    if (!data.sweeps.length) return;
    const view = picked("swept");
    data.sweeps.forEach((sweep, i) => drawAgainst(`sweep-${i}`, sweep[view]));
  }

  function drawPareto() {
    const key = $("cost-axis").value;
    const option = $("cost-axis").selectedOptions[0];
    const arms = data.arms.filter((a) => a.values[key] !== null && a.values.val_loss !== null);
    const points = arms.map((arm) => {
      const style = look(arm.place);
      return {
        type: "scatter", mode: "markers", name: shorten(arm.label, 34),
        x: [arm.values[key]], y: [arm.values.val_loss],
        error_y: { type: "data", array: [arm.values.sd], color: style.colour },
        marker: { color: style.colour, symbol: style.shape, size: 11 },
      };
    });
    let best = Infinity;
    const front = arms
      .map((arm) => [arm.values[key], arm.values.val_loss])
      .sort((a, b) => a[0] - b[0] || a[1] - b[1])
      .filter(([, y]) => y < best && ((best = y), true));
    const line = {
      type: "scatter", mode: "lines", name: "frontier", hoverinfo: "skip",
      x: front.map((p) => p[0]), y: front.map((p) => p[1]),
      line: { shape: "hv", dash: "dot", width: 1, color: css("--faint") },
    };
    const shape = layout(option ? option.textContent : "", LOSS, {});
    draw("pareto", points.length ? [line, ...points] : [], shape);
  }

  function drawGpu() {
    if (!$("gpu-run")) return;
    const run = data.gpu[$("gpu-run").value];
    const panels = data.gpu_panels.filter(([key]) => run.gpus.some((gpu) => gpu[key]));
    const traces = panels.flatMap(([key], panel) => run.gpus.map((gpu, i) => ({
      type: "scatter", mode: "lines", name: plain(gpu.name), legendgroup: `${i}`,
      showlegend: panel === 0 && run.gpus.length > 1,
      x: gpu.minutes, y: gpu[key], xaxis: "x", yaxis: `y${panel + 1}`,
      line: { color: look(i + 1).colour, width: 1.5 },
    })));
    const shape = layout("minutes", "", {});
    panels.forEach(([, title], i) => {
      const step = 1 / panels.length, top = 1 - i * step;
      shape[i ? `yaxis${i + 1}` : "yaxis"] = {
        ...shape.yaxis, title: { text: title }, domain: [top - step * 0.86, top],
        rangemode: "tozero",
      };
    });
    shape.xaxis.anchor = `y${panels.length}`;
    draw("gpu-chart", traces, shape);
  }

  // one row for each GPU or slot, one colour for each state; idle time is left blank
  function drawTimes() {
    if (!$("time-line")) return;
    const { states, lanes, bars } = data.times;
    const colours = [2, 0, 4, 1, 3].map((place) => look(place + 1).colour);
    const traces = states.slice(0, -1).map((state, number) => {
      const mine = bars.filter((bar) => bar[1] === number);
      return {
        type: "bar", orientation: "h", name: plain(state), hoverinfo: "text",
        y: mine.map((bar) => `${bar[0]}`), base: mine.map((bar) => bar[2]),
        x: mine.map((bar) => bar[3]),
        text: mine.map((bar) =>
          `${plain(state)} ${(bar[3] * 60).toFixed(1)} s<br>${plain(bar[4])}`),
        textposition: "none", marker: { color: colours[number] },
      };
    }).filter((trace) => trace.x.length);
    const shape = layout(isNarrow() ? "" : "minutes", "", {
      barmode: "overlay", bargap: 0.25, height: 110 + 34 * Math.max(lanes.length, 1),
    });
    Object.assign(shape.yaxis, {
      type: "category", tickvals: lanes.map((_, i) => `${i}`),
      ticktext: lanes.map((name) => shorten(name, isNarrow() ? 16 : 44)),
      range: [lanes.length - 0.5, -0.5],
    });
    if (isNarrow()) {
      shape.xaxis.ticksuffix = " min";
      shape.legend.y = -40 / (shape.height - 60);
    }
    $("time-line").style.height = `${shape.height}px`;
    draw("time-line", traces, shape);
  }

  function drawAll() {
    drawTimes();
    drawForest();
    drawSweeps();
    drawLoss();
    drawPareto();
    drawGpu();
    const page = { data, layout, wholeTicks, draw, look, shorten, plain, isNarrow, css, hidden };
    for (const chart of window.kablateCharts || []) chart(page);
  }

  // ---- configuration -----------------------------------------------------------

  const settingsOf = (run) => ({ ...data.base_settings, ...run.settings });
  function showDifferences() {
    const a = settingsOf(data.runs[$("config-a").value]);
    const b = settingsOf(data.runs[$("config-b").value]);
    const names = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort();
    const rows = names.filter((name) => a[name] !== b[name]).map((name) => {
      const row = document.createElement("tr");
      for (const text of [name, a[name] ?? "–", b[name] ?? "–"]) {
        row.insertCell().textContent = text;
      }
      return row;
    });
    $("config-table").tBodies[0].replaceChildren(...rows);
    $("config-box").hidden = rows.length === 0;
    $("config-count").textContent = rows.length
      ? `${rows.length} of ${names.length} settings differ`
      : "No setting differs.";
  }
  function fill(select, labels, chosen) {
    select.replaceChildren(...labels.map((label, i) => new Option(label, i)));
    select.value = Math.max(0, Math.min(chosen, labels.length - 1));
  }

  // ---- start -------------------------------------------------------------------

  for (const box of document.querySelectorAll(".controls")) box.hidden = false;
  $("theme").hidden = false;
  const labels = data.runs.map((run) => run.label);
  fill($("config-a"), labels, 0);
  fill($("config-b"), labels, labels.findIndex((_, i) => data.runs[i].arm !== data.runs[0].arm));
  if ($("gpu-run")) fill($("gpu-run"), data.gpu.map((run) => run.label), 0);
  const on = (id, action) => $(id) && $(id).addEventListener("change", action);
  on("config-a", showDifferences);
  on("config-b", showDifferences);
  on("cost-axis", drawPareto);
  on("gpu-run", drawGpu);
  on("relative", drawLoss);
  for (const input of document.querySelectorAll('input[type="radio"]')) {
    const redraw = { measure: drawForest, swept: drawSweeps }[input.name] ?? drawLoss;
    input.addEventListener("change", redraw);
  }
  const show = (keep) => {
    hidden.clear();
    for (const arm of data.arms) if (!keep(arm)) hidden.add(arm.label);
    drawLoss();
  };
  $("show-all").addEventListener("click", () => show(() => true));
  $("show-base").addEventListener("click", () => show((arm) => arm.place === 0));
  if (labels.length) showDifferences();
  let stored = "auto";
  try { stored = localStorage.getItem("kablate-theme") || "auto"; } catch { /* none */ }
  setTheme(themes.includes(stored) ? stored : "auto");
  let wasNarrow = isNarrow();
  window.addEventListener("resize", () => {
    if (wasNarrow !== isNarrow()) { wasNarrow = isNarrow(); drawAll(); }
  });
  root.dataset.ready = "yes";
})();
