// What would make this server faster: advice, the measuring of a model, and what came of it.

import { bars } from "./charts.js";
import { byId, duration, el, say, when } from "./dom.js";
import { get, Refused, send } from "./server.js";

const OPTIMIZE = "/api/v1/performance/optimize";
const POLL_MS = 1000;
const RETRY_MS = 2000;

export class Tuning {
  constructor() {
    this.timer = null;
    this.acting = false;
    /** The model whose measuring was seen under way. */
    this.watched = null;
    /** When the one began whose end was told. */
    this.told = null;
    byId("order-stop").addEventListener("click", () => this.act(() => this.stop()));
  }

  /** Read it all anew; how far the measuring is, again soon. */
  async load() {
    clearTimeout(this.timer);
    const [{ latest, calibrations }, advice, { hardware }] = await Promise.all([get(OPTIMIZE), recommended(), get("/api/v1/dashboard/overview")]);
    const running = latest?.status === "running" ? latest : null;
    if (latest && !running && (this.watched || (latest.status === "failed" && latest.started_at !== this.told))) {
      this.told = latest.started_at;
      this.tell(ending(latest), latest.status === "failed");
    }
    this.watched = running?.model ?? null;
    const held = byId("tuning").contains(document.activeElement) && document.activeElement;
    this.order(running);
    this.advice(advice, running);
    const stale = ({ model, machine }) => (hardware && machine !== hardware.name) || advice?.some(({ id }) => id === `measure:${model}`);
    byId("measured").replaceChildren(...newest(calibrations).map((one) => this.result(one, {
      stale: stale(one), undoable: !running && one === calibrations.at(-1),
    })));
    if (held && !held.offsetParent) this.refocus(held.dataset.action);
    if (running) this.later(POLL_MS, () => this.watch());
    else if (!advice) this.later(RETRY_MS, () => this.load());
  }

  /** What had the focus was drawn anew, or is gone. */
  refocus(action) {
    const again = byId("tuning").querySelector(`[data-action="${CSS.escape(action ?? "")}"]`);
    (again?.offsetParent && !again.disabled ? again : byId("tuning-title")).focus();
  }

  async watch() {
    const { latest } = await get(OPTIMIZE);
    if (latest?.status !== "running" || latest.model !== this.watched) return this.load();
    this.order(latest);
    this.later(POLL_MS, () => this.watch());
  }

  later(pause, look) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!byId("performance").hidden) look().catch((problem) => { this.refused(problem); this.later(RETRY_MS, look); });
    }, pause);
  }

  order(running) {
    byId("order").hidden = !running;
    if (!running) return;
    const clips = running.of ? `${running.done} of ${running.of} clips` : "waiting for its turn";
    say(byId("order-model"), `Measuring ${running.model}, between the jobs`);
    say(byId("order-clips"), clips);
    const bar = byId("order-bar");
    bar.max = running.of ?? 1;
    bar.value = running.done;
    bar.setAttribute("aria-valuetext", clips);
  }

  advice(found, running) {
    const shown = (found ?? []).filter(({ id }) => id !== `measure:${running?.model}`);
    byId("advice").replaceChildren(...shown.map((one) => this.item(one, running)));
    byId("advice-none").hidden = shown.length > 0 || Boolean(running);
    say(byId("advice-none"), found
      ? "Nothing at present. It is said here when jobs wait for what could be avoided, or run on a model that has not been measured."
      : "That is not known while the engine starts.");
  }

  item({ id, why, how, gain, request, model }, running) {
    return el("li", { className: "card" },
      el("p", {}, why),
      request && el("div", { className: "buttons" }, el("button", {
        type: "button", className: "quiet", "data-action": id, disabled: Boolean(running),
        onclick: () => this.act(() => send(request.method, request.path, request.body)),
      }, "Measure this model", el("span", { className: "visually-hidden" }, ` ${model}`))),
      el("p", { className: "hint said" }, how),
      el("p", { className: "hint said" }, `Gain: ${gain}`));
  }

  /** What was measured of a model; the newest of all can be undone. */
  result(calibration, { stale, undoable }) {
    const { model, machine, date, clip, trials } = calibration;
    const rows = trials.map(({ way, seconds }) => ({ name: way, value: seconds, cells: [fine(seconds), !stale && way === taken(calibration) ? "yes" : "no"] }));
    const figure = bars(`${model}: time to denoise the same clip`, rows, ["Way", "Median", "Taken"], fine);
    figure.querySelector("figcaption").after(
      el("p", {}, stale ? "Not taken: it was measured on another machine, or with another torch." : verdict(calibration)),
      el("p", { className: "hint" }, `${clip}; ${machine}, ${when(date)}`));
    if (undoable) {
      figure.append(el("div", { className: "buttons" }, el("button", {
        type: "button", className: "quiet", "data-action": `undo ${model}`, onclick: () => this.act(() => this.undo(calibration)),
      }, "Undo", el("span", { className: "visually-hidden" }, ` the measuring of ${model}`))));
    }
    return figure;
  }

  // The same request stops what is under way and undoes the newest: look first which it would be.

  async stop() {
    if ((await get(OPTIMIZE)).latest?.status !== "running") return;
    await send("DELETE", OPTIMIZE);
    this.tell("Stopping…");
  }

  async undo({ model, date }) {
    const { latest, calibrations } = await get(OPTIMIZE);
    if (latest?.status === "running" || calibrations.at(-1)?.date !== date) return;
    await send("DELETE", OPTIMIZE);
    this.tell(`Undone: ${model} is computed as it was before`);
  }

  /** One thing at a time: a second click would undo what was measured before. */
  async act(action) {
    if (this.acting) return;
    this.acting = true;
    this.tell("");
    try {
      await action().catch((problem) => this.refused(problem));
      await this.load();
    } catch (problem) {
      this.refused(problem);
    } finally {
      this.acting = false;
    }
  }

  refused(problem) {
    if (!(problem instanceof Refused)) throw problem;
    this.tell(problem.message, true);
  }

  tell(text, bad = false) {
    byId("tuning-note").classList.toggle("failed", bad);
    say(byId("tuning-note"), text);
  }
}

/** null while the engine starts, which alone knows. */
async function recommended() {
  try {
    return (await get("/api/v1/performance/recommendations")).recommendations;
  } catch (problem) {
    if (!(problem instanceof Refused) || !problem.retryable) throw problem;
    return null;
  }
}

/** Of each model the one that counts, the newest first. */
function newest(calibrations) {
  return [...new Map(calibrations.map((one) => [one.model, one])).values()].sort((one, other) => other.date.localeCompare(one.date));
}

const changes = ({ tuned }) => Object.values(tuned).some((value) => value !== null);

/** The way that is taken: the usual one, unless another was clearly faster. */
function taken(calibration) {
  const { trials } = calibration;
  return (changes(calibration) ? trials.reduce((best, one) => (one.seconds < best.seconds ? one : best)) : trials[0]).way;
}

function verdict(calibration) {
  return changes(calibration)
    ? `Taken: ${taken(calibration)}, ${calibration.gain.toFixed(2)} times as fast as before.`
    : "No way was clearly faster than the usual one, which stays.";
}

function ending({ status, model, calibration, error }) {
  if (status === "completed") return `${model} is measured. ${verdict(calibration)}`;
  return status === "canceled" ? "Stopped: nothing was changed" : `${model} could not be measured: ${error.message}`;
}

const fine = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : duration(seconds));
