"use strict";
// Draws the curves of a report. What a reader chose (axis, zoom, hidden runs, open sections) is kept in the address, so
// that it survives the page's reloading and can be handed on.
const data = JSON.parse(document.getElementById("data").textContent);
const charts = document.getElementById("charts");
// hidden: names of groups of seeds
const state = { axis: data.axes[0].key, logx: null, logy: {}, zoom: null, hidden: [], open: [] };
try { Object.assign(state, JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* no state, or not ours */ }
if (!data.axes.some((axis) => axis.key === state.axis)) state.axis = data.axes[0].key;
for (const name of ["hidden", "open"]) if (!Array.isArray(state[name])) state[name] = [];
if (!(Array.isArray(state.zoom) && state.zoom.length === 2 && state.zoom.every(Number.isFinite) && state.zoom[0] < state.zoom[1])) state.zoom = null;
if (typeof state.logy !== "object" || state.logy === null) state.logy = {};
let dragging = false;

const LEFT = 58, RIGHT = 10, TOP = 8, BOTTOM = 42, HEIGHT = 266;
// of a group: its method's hue, paler for all but the last of the method's lines
const color = (group) => { const { hue, paleness } = data.groups[group].look;
  return paleness ? `color-mix(in srgb, var(--c${hue}) ${100 * (1 - paleness)}%, var(--paper))` : `var(--c${hue})`; };
const dashes = (group) => data.groups[group].look.dashes.map((length) => 1.6 * length).join(" ");
// corners of markers, on a circle of radius 1; none: a circle
const polygon = (corners, turn) => Array.from({ length: corners }, (_, i) => {
  const angle = 2 * Math.PI * (i / corners + turn); return [Math.sin(angle), -Math.cos(angle)]; });
const MARKERS = [null, polygon(4, 1 / 8), polygon(3, 0), polygon(4, 0), polygon(3, 1 / 2), polygon(3, 1 / 4), polygon(5, 0), polygon(6, 0)];
const axis = () => data.axes.find((axis) => axis.key === state.axis);
const logx = () => state.logx ?? axis().log;
const logy = (chart) => state.logy[chart.key] ?? chart.log;

function element(name, attributes, parent, text) {
  const made = name === "div" || name === "span" ? document.createElement(name)
    : document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function marker(group, x, y, size, parent) {
  const corners = MARKERS[data.groups[group].look.marker];
  if (!corners || size < 2) return element("circle", { cx: x, cy: y, r: size, fill: color(group) }, parent);
  const points = corners.map(([right, down]) => `${(x + 1.35 * size * right).toFixed(1)},${(y + 1.35 * size * down).toFixed(1)}`);
  return element("polygon", { points: points.join(" "), fill: color(group) }, parent);
}

function keep() {
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)));
}

// A number; a tick of an axis that ends at `largest`: 8k beside 12k, but 500 beside 5k and 50k where it is logarithmic.
function short(value, largest = Math.abs(value), log = false) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (largest >= 1e4 && (log ? size : largest) >= unit) return +(value / unit).toPrecision(4) + letter;
  return String(+value.toPrecision(5));
}

function ticks(low, high, log) {
  if (log) {
    for (const digits of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const digit of digits) found.push(digit * 10 ** power);
      const inside = found.filter((tick) => tick >= low * 0.999999 && tick <= high * 1.000001);
      if (inside.length >= 3) return inside.length <= 9 ? inside : inside.filter((_, i) => i % Math.ceil(inside.length / 8) === 0);
    }
  }
  const rough = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((step) => step >= rough * 0.999);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high * (1 + 1e-12) + 1e-300; index++) found.push(+(index * step).toPrecision(12));
  return found;
}

// [{group, name, x, y, spread, marked}] of a chart: the groups that are shown, where both numbers are and the axes can show them
function series(chart) {
  const found = [];
  data.groups.forEach((group, index) => {
    if (state.hidden.includes(group.name)) return;
    for (const curve of group.curves) {
      const ys = curve.columns[chart.key], xs = curve.columns[state.axis], spread = curve.spread[chart.key];
      if (!ys || !xs) continue;
      const kept = xs.map((_, i) => i).filter((i) => xs[i] !== null && ys[i] !== null && !(logx() && xs[i] <= 0) && !(logy(chart) && ys[i] <= 0));
      if (kept.length) found.push({ group: index, name: group.name + (curve.split === null ? "" : ", " + curve.split), x: kept.map((i) => xs[i]),
        y: kept.map((i) => ys[i]), spread: spread && kept.map((i) => spread[i] ?? 0), marked: curve.split !== null, steps: kept.map((i) => curve.columns.step[i]) });
    }
  });
  return found;
}

function extent(lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const value of list) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

function wholeX() {
  const [low, high] = extent(data.charts.flatMap((chart) => series(chart).map((line) => line.x)));
  return low < high ? [low, high] : [low - (low === 0 ? 1 : Math.abs(low) / 2), low + (low === 0 ? 1 : Math.abs(low) / 2)];
}

function scaling(low, high, from, to, log) {
  const f = log ? Math.log : (value) => value, a = f(low), b = f(high);
  const forth = (value) => from + (f(value) - a) / (b - a) * (to - from);
  forth.back = (place) => { const value = a + (place - from) / (to - from) * (b - a); return log ? Math.exp(value) : value; };
  return forth;
}

function draw(chart) {
  const svg = chart.svg, lines = series(chart);
  svg.replaceChildren();
  chart.tip.hidden = true;
  chart.figure.hidden = lines.length === 0;
  if (!lines.length) return;
  const width = Math.max(200, svg.clientWidth || 600);
  const [low, high] = state.zoom ?? wholeX();
  const seen = lines.map((line) => line.y.filter((_, i) => line.x[i] >= low && line.x[i] <= high)).filter((list) => list.length);
  let [bottom, top] = extent(seen.length ? seen : lines.map((line) => line.y));
  if (logy(chart)) { const pad = Math.max((top / bottom) ** 0.05, 1.001); bottom /= pad; top *= pad; }
  else { const pad = (top - bottom) * 0.05 || Math.abs(top) * 0.1 || 1; bottom -= pad; top += pad; if (bottom < 0 && extent(lines.map((l) => l.y))[0] >= 0) bottom = 0; }
  const x = scaling(low, high, LEFT, width - RIGHT, logx()), y = scaling(bottom, top, HEIGHT - BOTTOM, TOP, logy(chart));
  Object.assign(chart, { lines, x, y, width });
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  for (const tick of ticks(bottom, top, logy(chart))) {
    element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }, svg);
    element("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, svg, short(tick, top, logy(chart)));
  }
  let free = 0;
  for (const tick of ticks(low, high, logx())) {
    const label = short(tick, high, logx()), half = label.length * 3.3, place = Math.min(Math.max(x(tick), LEFT - 4), width - RIGHT);
    element("line", { class: "grid", x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM }, svg);
    if (place - half < free || place + half > width) continue;
    element("text", { x: place, y: HEIGHT - 25, "text-anchor": "middle", class: "tick" }, svg, label);
    free = place + half + 6;
  }
  element("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 7, "text-anchor": "middle", class: "name" }, svg, axis().label + (logx() ? " (log scale)" : ""));
  // wider than the axes by half a marker
  const clip = `clip-${chart.key}`;
  element("rect", { x: LEFT - 5, y: TOP - 5, width: width - LEFT - RIGHT + 10, height: HEIGHT - TOP - BOTTOM + 10 }, element("clipPath", { id: clip }, svg));
  const inside = element("g", { "clip-path": `url(#${clip})` }, svg);
  for (const line of lines) {
    // the evaluation before training stands apart: a straight line from it, beside the bend of training, would read as a worse model
    const start = line.marked && line.steps[0] === 0 && line.x.length > 1 ? 1 : 0;
    const at = (i, value) => `${x(line.x[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    if (line.spread) band(line, start, at, chart, inside);
    const path = line.x.map((_, i) => `${i > start ? "L" : "M"}${at(i, line.y[i])}`).join("");
    const paired = !line.marked && lines.some((other) => other.marked && other.group === line.group);
    element("path", { d: path, fill: "none", stroke: color(line.group), "stroke-width": paired ? 0.8 : 1.7, "stroke-opacity": paired ? 0.6 : 1,
      "stroke-dasharray": paired ? "" : dashes(line.group), "data-name": line.name }, inside);
    if (line.marked || line.x.length === 1)
      line.x.forEach((value, i) => marker(line.group, x(value), y(line.y[i]), line.x.length > 60 ? 1.4 : 2.6, inside));
  }
  if (chart.key === "loss") events(inside, x);
}

// One standard deviation over seeds on both sides of a line
function band(line, start, at, chart, parent) {
  const low = (i) => { const value = line.y[i] - line.spread[i]; return logy(chart) && value <= 0 ? line.y[i] : value; };
  const numbers = line.x.map((_, i) => i).slice(start);
  const edge = [...numbers.map((i) => at(i, line.y[i] + line.spread[i])), ...numbers.reverse().map((i) => at(i, low(i)))];
  element("path", { d: `M${edge.join("L")}Z`, fill: color(line.group), class: "band" }, parent);
}

// What happened to the runs that are shown, as marks at the foot of a chart
function events(parent, x) {
  data.groups.forEach((group, index) => {
    if (state.hidden.includes(group.name)) return;
    for (const event of group.events) {
      const at = event.at[state.axis];
      if (at === undefined || at === null || (logx() && at <= 0)) continue;
      const place = x(at), foot = HEIGHT - BOTTOM;
      const mark = event.alarm ? `M${place} ${foot - 9}l4 8h-8z` : `M${place - 1} ${foot - 5}h2v5h-2z`;
      element("title", {}, element("path", { d: mark, class: event.alarm ? "event alarm" : "event", "data-group": index }, parent), event.text);
    }
  });
}

function nearest(list, value) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] < value) low = middle; else high = middle; }
  return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
}

function hover(chart, place) {
  chart.svg.querySelectorAll(".cross, .dot").forEach((old) => old.remove());
  if (place < LEFT || place > chart.width - RIGHT) { chart.tip.hidden = true; return; }
  chart.tip.replaceChildren();
  const value = chart.x.back(place);
  element("line", { class: "cross", x1: place, x2: place, y1: TOP, y2: HEIGHT - BOTTOM }, chart.svg);
  const found = chart.lines.map((line) => ({ line, i: nearest(line.x, value) }))
    .filter(({ line, i }) => Math.abs(chart.x(line.x[i]) - place) < Math.max(40, chart.width / 12));
  element("div", { class: "faint" }, chart.tip, `${axis().label}: ${short(value)}`);
  for (const { line, i } of found.slice(0, 14)) {
    const row = element("div", {}, chart.tip);
    element("span", {}, row, "● ").style.color = color(line.group);
    const spread = line.spread?.[i] ? ` ± ${line.spread[i].toPrecision(2)}` : "";
    row.append(`${line.name}: ${+line.y[i].toPrecision(6)}${spread} (step ${line.steps[i].toLocaleString("en")})`);
    element("circle", { class: "dot", cx: chart.x(line.x[i]), cy: chart.y(line.y[i]), r: 4, fill: "none", stroke: color(line.group) }, chart.svg);
  }
  chart.tip.hidden = false;
  const room = chart.svg.clientWidth - chart.tip.offsetWidth;
  chart.tip.style.left = `${Math.max(0, place > room / 2 + 60 ? Math.min(place - chart.tip.offsetWidth - 12, room) : Math.min(place + 12, room))}px`;
  chart.tip.style.top = "2rem";
}

function listen(chart) {
  const svg = chart.svg, at = (event) => event.clientX - svg.getBoundingClientRect().left;
  let began = null, box = null;
  svg.addEventListener("pointerdown", (event) => { began = at(event); dragging = true; if (event.isTrusted) svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", (event) => {
    const place = at(event);
    hover(chart, place);
    if (began === null || Math.abs(place - began) < 5) return;
    box ??= element("rect", { class: "select", y: TOP, height: HEIGHT - TOP - BOTTOM }, svg);
    box.setAttribute("x", Math.min(began, place));
    box.setAttribute("width", Math.abs(place - began));
  });
  svg.addEventListener("pointerup", (event) => {
    const ends = [began, at(event)].map((place) => Math.min(Math.max(place, LEFT), chart.width - RIGHT)).sort((a, b) => a - b);
    if (box && ends[1] - ends[0] > 5) zoom(ends.map(chart.x.back));
    stop();
  });
  const stop = () => { box?.remove(); began = box = null; dragging = false; };
  svg.addEventListener("pointercancel", stop);
  svg.addEventListener("pointerleave", () => { if (began === null) { chart.tip.hidden = true; svg.querySelectorAll(".cross, .dot").forEach((old) => old.remove()); } });
  svg.addEventListener("dblclick", () => zoom(null));
}

function zoom(range) { state.zoom = range; show(); }

function zoomBy(factor) {
  const [low, high] = state.zoom ?? wholeX(), log = logx();
  const f = log ? Math.log : Number, back = log ? Math.exp : Number, middle = (f(low) + f(high)) / 2, half = (f(high) - f(low)) / 2 * factor;
  const [first, last] = wholeX();
  const range = [Math.max(back(middle - half), first), Math.min(back(middle + half), last)];
  zoom(range[0] <= first && range[1] >= last ? null : range);
}

function show() {
  keep();
  document.getElementById("logx").checked = logx();
  document.getElementById("axis").value = state.axis;
  data.charts.forEach(draw);
}

data.axes.forEach((axis) => document.getElementById("axis").add(new Option(axis.label, axis.key)));
document.getElementById("axis").addEventListener("change", (event) => { state.axis = event.target.value; state.zoom = state.logx = null; show(); });
document.getElementById("logx").addEventListener("change", (event) => { state.logx = event.target.checked; state.zoom = null; show(); });
document.getElementById("in").addEventListener("click", () => zoomBy(0.5));
document.getElementById("out").addEventListener("click", () => zoomBy(2));
document.getElementById("whole").addEventListener("click", () => zoom(null));
data.groups.forEach((group, index) => {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = !state.hidden.includes(group.name);
  box.addEventListener("change", () => { state.hidden = state.hidden.filter((name) => name !== group.name); if (!box.checked) state.hidden.push(group.name); show(); });
  const sample = element("svg", { width: 34, height: 10 });
  element("line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: color(index), "stroke-width": 2, "stroke-dasharray": dashes(index) }, sample);
  marker(index, 17, 5, 2.6, sample);
  label.append(box, sample, group.name);
  document.getElementById("runs").append(label);
});
for (const chart of data.charts) {
  chart.figure = document.createElement("figure");
  const caption = document.createElement("figcaption"), label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = logy(chart);
  box.addEventListener("change", () => { state.logy[chart.key] = box.checked; show(); });
  label.append(box, " log");
  caption.append(element("span", {}, null, chart.label), label);
  chart.svg = element("svg", { role: "img", "aria-label": chart.label, id: `chart-${chart.key}` });
  chart.tip = element("div", { class: "tip" });
  chart.figure.append(caption, chart.svg, chart.tip);
  charts.append(chart.figure);
  listen(chart);
}
document.querySelectorAll("details[id]").forEach((details) => {
  if (state.open.includes(details.id)) details.open = true;
  details.addEventListener("toggle", () => { state.open = state.open.filter((id) => id !== details.id); if (details.open) state.open.push(details.id); keep(); });
});
addEventListener("resize", () => data.charts.forEach(draw));
show();
if (data.reload) setInterval(() => { if (!dragging && !document.hidden) location.reload(); }, 1000 * data.reload);
