// Plots as inline SVG, each with a table that says the same.

import { el } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, given = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A figure of a plot and its table. */
function figure(title, plot, head, rows) {
  plot.setAttribute("aria-hidden", "true"); // the table says it in words
  return el("figure", { className: "card chart" }, el("figcaption", {}, title), plot,
    el("details", {}, el("summary", {}, "As a table"), el("div", { className: "scroll" }, el("table", { "aria-label": title },
      el("thead", {}, el("tr", {}, ...head.map((name, index) => el("th", { scope: "col", className: index ? "number" : "" }, name)))),
      el("tbody", {}, ...rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", { className: "number" }, cell)))))))));
}

/** Horizontal bars; `more` is a fainter continuation of each, such as the slowest tenth. */
export function bars(title, rows, head, write) {
  const longest = Math.max(...rows.map((row) => row.name.length));
  const left = Math.max(120, 8 * longest + 10), width = 460, right = 80, line = 30;
  const most = Math.max(...rows.map((row) => Math.max(row.value, row.more ?? 0)), 1e-9);
  const x = (value) => (value / most) * (width - left - right);
  const parts = rows.flatMap((row, index) => {
    const y = index * line + 4;
    return [
      svg("text", { x: left - 10, y: y + 15, "text-anchor": "end" }, row.name),
      row.more === undefined ? "" : svg("rect", { class: "faint", x: left, y, width: Math.max(x(row.more), 1), height: 20, rx: 4 }),
      svg("rect", { class: "mark", x: left, y, width: Math.max(x(row.value), 1), height: 20, rx: 4 }),
      svg("text", { x: left + x(Math.max(row.value, row.more ?? 0)) + 8, y: y + 15 }, write(row.value)),
    ];
  });
  const plot = svg("svg", { viewBox: `0 0 ${width} ${rows.length * line}` }, ...parts);
  return figure(title, plot, head, rows.map((row) => [row.name, ...row.cells]));
}

/** One column for each job in time's order; those that failed in another colour. */
export function columns(title, rows, head, write) {
  const left = 56, width = 460, height = 190, bottom = 24;
  const most = Math.max(...rows.map((row) => row.value), 1e-9);
  const ticks = niceTicks(most);
  const top = ticks.at(-1);
  const y = (value) => 10 + (1 - value / top) * (height - bottom - 10);
  const step = (width - left) / Math.max(rows.length, 12);
  const parts = [
    ...ticks.flatMap((tick) => [
      svg("line", { class: "axis", x1: left, x2: width, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, write(tick)),
    ]),
    ...rows.map((row, index) => svg("rect", { class: row.bad ? "bad" : "mark", x: left + index * step + step * 0.15, y: y(row.value), width: step * 0.7, height: Math.max(y(0) - y(row.value), 1), rx: Math.min(3, step * 0.3) })),
    svg("text", { x: left, y: height - 4 }, "older"),
    svg("text", { x: left + Math.max(rows.length, 1) * step, y: height - 4, "text-anchor": "end" }, rows.length > 3 ? "newer" : ""),
  ];
  return figure(title, svg("svg", { viewBox: `0 0 ${width} ${height}` }, ...parts), head, rows.map((row) => [row.name, ...row.cells]).reverse());
}

/** Four or five round numbers from 0 to above the largest. */
export function niceTicks(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, index) => index * step);
}
