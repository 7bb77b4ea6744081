// The page: which view is open, and what the views tell each other.

import { byId, duration, el, say } from "./dom.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { Models } from "./models.js";
import { Performance } from "./performance.js";
import { Screen } from "./screen.js";
import { get, Refused, send } from "./server.js";

const VIEWS = ["create", "history", "models", "performance"];
const HEALTH_MS = 5000;
const RETRY_MS = 2000;

const history = new History({ reuse });
const models = new Models();
const performance = new Performance();
const screen = new Screen({ reuse, ended });
const loads = { history: () => history.load(), models: () => models.load(), performance: () => performance.load() };
let form = null;

async function reuse(request) {
  form.fill(request);
  location.hash = "#create";
  await route(); // now, not when the browser says so: what is hidden can't have the focus
  byId("f-prompt").focus();
}

let submitted = null;

/** What is wrong with a request may come out only when it is planned: it belongs at its field too. */
function ended(job) {
  if (job.task_id === submitted) {
    submitted = null; // said once, not whenever the job is looked at
    if (job.error?.field) form.showError(new Refused(422, job.error));
  }
  health();
}

async function submit(request) {
  const job = await send("POST", "/api/v1/generation/submit", request);
  submitted = job.task_id;
  location.hash = `#job/${job.task_id}`;
  if (matchMedia("(max-width: 900px)").matches) byId("screen").scrollIntoView();
  health();
}

/** Say what a request would take, while it is written; what is wrong with it is said when it is sent. */
async function foresee(request) {
  const line = byId("estimate");
  if (!request.prompt && !request.image_url) return say(line, "");
  try {
    const { estimate, delivered, model, outputs } = await send("POST", "/api/v1/generation/plan", request);
    const time = `${estimate.basis === "measured" ? "About" : "Roughly"} ${duration(estimate.seconds)}`;
    const frames = request.mode === "video" ? `${delivered.num_frames} frames` : null;
    const size = delivered.width ? `${delivered.width} × ${delivered.height}` : "the picture's shape";
    say(line, [time, outputs > 1 && `${outputs} outputs`, size, frames, model].filter(Boolean).join(" · "));
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    say(line, "");
  }
}

/** Open the view that the address names: #history, or #job/ID, which is the create view with it. */
async function route() {
  const [name, task] = location.hash.slice(1).split("/");
  const view = VIEWS.includes(name) ? name : "create";
  const changed = byId(view).hidden;
  for (const each of VIEWS) {
    byId(each).hidden = each !== view;
    document.querySelector(`nav a[href="#${each}"]`).toggleAttribute("aria-current", each === view);
  }
  document.querySelector("nav a[aria-current]").setAttribute("aria-current", "page");
  if (changed) byId(`${view}-title`).focus({ preventScroll: true });
  if (changed) window.scrollTo(0, 0);
  try {
    if (name === "job" && task) await screen.show(task);
    else await loads[view]?.();
  } catch (problem) {
    complain(problem);
    const here = location.hash;
    if (problem.retryable) setTimeout(() => { if (location.hash === here) route(); }, RETRY_MS);
  }
}

function complain(problem) {
  if (!(problem instanceof Refused)) throw problem;
  showAlerts([{ level: "critical", message: problem.message }]);
}

const REMEDIES = { NO_MODEL: "#models", WEIGHTS_DAMAGED: "#models" };

function showAlerts(alerts) {
  const box = byId("alerts");
  const texts = alerts.map((alert) => alert.message).join("\n");
  if (box.dataset.shown === texts) return; // else it would be read out again
  box.dataset.shown = texts;
  box.hidden = !texts;
  box.querySelector("ul").replaceChildren(...alerts.map(({ level, code, message }) => el("li", { className: level, role: "alert" },
    message, REMEDIES[code] && el("a", { href: REMEDIES[code] }, "Go to the models"))));
}

async function health() {
  const box = byId("machine");
  try {
    const { engine, hardware, queue, alerts } = await get("/api/v1/dashboard/overview");
    const waiting = queue.queued ? `, ${queue.queued} waiting` : "";
    const doing = engine !== "ready" ? engine : queue.running ? `working${waiting}` : `ready${waiting}`;
    box.className = `machine ${engine !== "ready" ? "" : queue.running ? "busy" : "ready"}`;
    say(byId("machine-text"), [hardware?.name, doing].filter(Boolean).join(" · "));
    showAlerts(alerts);
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    if (problem.status !== 0) return;
    box.className = "machine lost";
    say(byId("machine-text"), "The server can't be reached");
  }
}

async function start() {
  const { request } = await get("/api/v1/schema");
  form = new Form(request, submit, foresee);
  window.addEventListener("hashchange", route);
  await Promise.all([route(), health(), installed()]);
  setInterval(() => { if (!document.hidden) health(); }, HEALTH_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) health(); });
}

/** Which models there are; the engine may still be starting. */
async function installed() {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      form.setModels((await get("/api/v1/models/status")).models);
      return;
    } catch (problem) {
      if (!(problem instanceof Refused) || !problem.retryable) return;
      await new Promise((done) => setTimeout(done, pause));
    }
  }
}

start().catch(complain);
