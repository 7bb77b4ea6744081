// How an element is made, and how numbers and times are written.

/** An element with properties, attributes (`aria-*`, `data-*`, `for`, `role`, ...) and children. */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Text of an element, changed only where it differs, so that it is not read out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Seconds, as people say them: "8.4 s", "3 min 20 s", "1 h 5 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (bytes >= 1000 && power < units.length - 1) { bytes /= 1000; power += 1; }
  return `${power && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[power]}`;
}

const shortTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const when = (iso) => (iso ? shortTime.format(new Date(iso)) : "–");

export const words = { completed: "Completed", failed: "Failed", canceled: "Cancelled", queued: "Waiting", running: "Running", canceling: "Cancelling…" };
const looks = { completed: "good", failed: "bad", canceled: "", queued: "wait", running: "wait", canceling: "wait" };
export const chip = (status) => el("span", { className: `chip ${looks[status] ?? ""}` }, words[status] ?? status);
