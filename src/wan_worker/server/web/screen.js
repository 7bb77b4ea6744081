// One job on the screen: its place in the queue, its progress and preview, and what it made.

import { byId, duration, el, say, size, words } from "./dom.js";
import { follow, get, media, Refused, send } from "./server.js";

/** The job's stages as the bar shows them: a name, its stages, and its share of the bar. */
const PHASES = [
  { name: "Preparing", stages: ["queue", "plan", "fetch", "load", "prompt"], share: 1 },
  { name: "Denoising", stages: ["denoise"], share: 6 },
  { name: "Decoding", stages: ["decode_encode"], share: 2.4 },
  { name: "Saving", stages: ["check", "upload"], share: 0.6 },
];
const NAMES = {
  queue: "Waiting for the GPU", plan: "Planning", fetch: "Fetching pictures", load: "Loading the model",
  prompt: "Reading the prompt", denoise: "Denoising",
  decode_encode: "Decoding and encoding", check: "Checking the file", upload: "Saving",
};

export class Screen {
  /** @param actions reuse(request), ended(job). */
  constructor(actions) {
    this.actions = actions;
    this.job = null;
    this.stop = () => {};
    this.urls = [];
    byId("bar").append(...PHASES.map((phase) => {
      const part = el("span");
      part.style.flex = String(phase.share);
      return part;
    }));
    byId("cancel").addEventListener("click", () => this.cancel());
  }

  /** Show a job from now on, whatever it is doing. */
  async show(taskId) {
    this.stop();
    this.stop = () => {};
    const job = await get(`/api/v1/generation/${encodeURIComponent(taskId)}`);
    this.clear();
    this.job = job;
    if (job.ended_at) { // perhaps before it could be followed
      await this.ended(job);
      this.actions.ended(job);
      return;
    }
    this.said = "";
    this.canceling = job.cancel_requested;
    byId("progress").hidden = false;
    say(byId("empty-text"), "A preview appears here once there is something to see.");
    this.progress({ ...(job.progress ?? { stage: "queue" }), status: job.status, position: job.position });
    this.stop = follow(job.links, (message) => this.hear(message));
  }

  async hear(message) {
    if (message.type === "progress") this.progress(message);
    else if (message.type === "preview") this.preview(message);
    else {
      const job = await get(this.job.links.self);
      if (this.job?.task_id !== job.task_id) return;
      const held = byId("progress").contains(document.activeElement);
      this.clear();
      await this.ended(job);
      if (held) byId("screen-title").focus(); // what had the focus is gone
      this.actions.ended(job);
    }
  }

  progress(event) {
    const queued = event.status === "queued";
    const at = queued ? -1 : PHASES.findIndex((phase) => phase.stages.includes(event.stage));
    const shares = queued ? PHASES.map(() => 0) : sharesOf(event, at);
    let done = 0, total = 0;
    PHASES.forEach((phase, index) => {
      const part = byId("bar").children[index];
      part.style.setProperty("--done", shares[index]);
      part.classList.toggle("working", index === at && !event.steps);
      done += shares[index] * phase.share;
      total += phase.share;
    });
    const percent = Math.round((100 * done) / total);
    const several = ["output", "segment"].filter((part) => event[`${part}s`] > 1)
      .map((part) => `${part} ${event[part]} of ${event[`${part}s`]}`);
    const step = event.steps ? [`step ${event.step} of ${event.steps}`] : [];
    const doing = queued ? waiting(event.position) : NAMES[event.stage] ?? event.stage;
    const name = this.canceling ? "Cancelling…" : doing;
    const stage = this.canceling ? name : [name, ...several, ...step].join(", ");
    const left = this.canceling || event.seconds_left === undefined || event.seconds_left === null ? "" : `${duration(event.seconds_left)} left`;
    say(byId("stage"), stage);
    say(byId("left"), left);
    const bar = byId("bar");
    bar.setAttribute("aria-valuenow", percent);
    bar.setAttribute("aria-valuetext", [stage, left].filter(Boolean).join(", "));
    if (name !== this.said) { this.said = name; say(byId("said"), name); } // not at every step
    document.title = `${percent} % · Wan worker`;
  }

  preview(message) {
    const picture = byId("preview");
    picture.src = `data:${message.content_type};base64,${message.data}`;
    picture.alt = "Preview: what the job is heading for";
    picture.hidden = false;
    byId("empty").hidden = true;
  }

  /** Nothing on it. */
  clear() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
    for (const id of ["progress", "failure", "facts", "results", "preview"]) byId(id).hidden = true;
    byId("box").hidden = byId("empty").hidden = false;
    say(byId("empty-text"), "What you make appears here.");
    byId("preview").removeAttribute("src");
    byId("preview").alt = "";
    byId("results").replaceChildren();
    document.title = "Wan worker";
  }

  async ended(job) {
    this.job = job;
    const why = job.status === "failed" ? `: ${job.error.message}` : "";
    say(byId("said"), `${words[job.status]}${why}`);
    if (job.error) {
      const box = byId("failure");
      box.hidden = false;
      const canceled = job.status === "canceled";
      box.replaceChildren(el("strong", {}, canceled ? "Cancelled. " : `${job.error.code}. `), job.error.message ?? "",
        job.error.retryable && !canceled ? " It may work if you try again." : "");
    }
    if (job.result) await this.results(job);
    this.facts(job);
  }

  async results(job) {
    const made = await Promise.all(job.result.assets.map((asset, index) => this.figure(job, asset, index)));
    byId("results").replaceChildren(...made);
    byId("results").hidden = false;
    byId("box").hidden = true;
  }

  async figure(job, asset, index) {
    const url = asset.data ? `data:${asset.content_type};base64,${asset.data}` : await media(asset.url);
    if (url.startsWith("blob:")) this.urls.push(url);
    const prompt = [job.request.prompt ?? "a picture"].flat();
    const about = `Made from: ${prompt[index] ?? prompt[0]}`;
    const shown = asset.content_type.startsWith("video/")
      ? el("video", { src: url, controls: true, loop: true, muted: true, autoplay: !reduced(), playsInline: true, "aria-label": about })
      : el("img", { src: url, alt: about });
    const name = `wan-${job.task_id.slice(0, 8)}-${index}.${extension(asset.content_type)}`;
    return el("figure", {}, shown, el("figcaption", {},
      el("a", { className: "button primary", href: url, download: name }, "Download"),
      el("span", { className: "hint" }, [`${asset.width} × ${asset.height}`,
        asset.fps && `${asset.num_frames} frames, ${duration(asset.duration)}`, size(asset.bytes), `seed ${asset.seed}`].filter(Boolean).join(" · "))));
  }

  facts(job) {
    const meta = job.result?.metadata;
    const prompt = [job.request.prompt ?? ""].flat().join(" / ");
    const rows = [["Status", words[job.status]], ["Model", meta?.model], ["Time", meta && duration(meta.generation_time)],
      ["Steps", meta?.plan?.num_inference_steps], ["Guidance", meta?.plan?.guidance_scale], ["Solver", meta?.plan?.solver],
      ["Weights", meta?.weights === "tiny" ? "tiny (toy)" : null]];
    const facts = byId("facts");
    facts.hidden = false;
    facts.replaceChildren(
      prompt && el("p", { className: "prompt" }, prompt),
      ...(job.result?.warnings ?? []).map((warning) => el("p", { className: "warning" }, warning.message)),
      el("dl", {}, ...rows.filter(([, value]) => value !== undefined && value !== null).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))))),
      el("div", { className: "buttons" }, el("button", { type: "button", className: "quiet", onclick: () => this.actions.reuse(settingsOf(job)) }, "Use these settings")),
      meta?.plan?.reasons && el("details", {}, el("summary", {}, "Why it was made this way"), el("ul", { className: "reasons" }, ...meta.plan.reasons.map((reason) => el("li", {}, reason)))));
  }

  async cancel() {
    try {
      const job = await send("POST", this.job.links.cancel);
      if (job.ended_at || this.job?.task_id !== job.task_id) return;
      this.canceling = true;
      for (const id of ["stage", "said"]) say(byId(id), "Cancelling…");
      say(byId("left"), "");
    } catch (problem) {
      if (!(problem instanceof Refused) || problem.status !== 409) throw problem; // it has just ended
    }
  }
}

/** A job's request, with the seed that was drawn for it, so that it makes the same again. */
export function settingsOf(job) {
  const seed = job.result?.assets?.[0]?.seed;
  return seed === undefined ? job.request : { ...job.request, seed };
}

/** How much of each phase is behind the job. Outputs and segments are made one after the other. */
function sharesOf(event, at) {
  const within = event.steps ? event.step / event.steps : 0;
  const segments = event.segments ?? 1;
  const units = (event.outputs ?? 1) * segments;
  const unit = ((event.output ?? 1) - 1) * segments + (event.segment ?? 1) - 1;
  const made = (phase) => (unit + (at > phase ? 1 : at === phase ? within : 0)) / units;
  return [at > 0 || unit > 0 ? 1 : within, made(1), made(2), at === 3 ? within : 0];
}

function waiting(ahead) {
  if (!ahead) return "Waiting, next in line";
  return `Waiting, ${ahead} ${ahead === 1 ? "job" : "jobs"} ahead`;
}

const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const extension = (type) => ({ "video/mp4": "mp4", "video/webm": "webm", "image/gif": "gif", "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" })[type] ?? "bin";
