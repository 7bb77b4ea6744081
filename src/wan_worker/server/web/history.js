// What was made before, newest first.

import { byId, chip, duration, el, when } from "./dom.js";
import { get, media } from "./server.js";
import { settingsOf } from "./screen.js";

const PAGE = 24;

export class History {
  /** @param actions reuse(request). */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("history-list");
    this.before = null;
    byId("history-status").addEventListener("change", () => this.load());
    byId("history-more").addEventListener("click", () => this.older());
    // A clip's first frame is fetched once it comes near the window.
    this.near = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        this.near.unobserve(target);
        media(target.dataset.url).then((url) => { target.src = target.tagName === "VIDEO" ? `${url}#t=0.01` : url; });
      }
    }, { rootMargin: "300px" });
  }

  async load() {
    const { jobs, before } = await get(this.path());
    this.list.replaceChildren(...jobs.map((job) => this.card(job)));
    this.follows(before);
    byId("history-none").hidden = jobs.length > 0;
  }

  async older() {
    const { jobs, before } = await get(`${this.path()}&before=${this.before}`);
    const cards = jobs.map((job) => this.card(job));
    this.list.append(...cards);
    this.follows(before);
    cards[0]?.querySelector("a, button")?.focus();
  }

  path() {
    const status = byId("history-status").value;
    return `/api/v1/generation?limit=${PAGE}${status ? `&status=${status}` : ""}`;
  }

  follows(before) {
    this.before = before;
    byId("history-more").hidden = before === null || before === undefined;
  }

  card(job) {
    const prompt = [job.request.prompt ?? "From a picture"].flat().join(" / ");
    const meta = job.result?.metadata;
    const facts = [meta?.model, meta && duration(meta.generation_time), when(job.submitted_at)].filter(Boolean);
    return el("li", { className: "card", "data-task": job.task_id },
      this.thumb(job.result?.assets[0]),
      el("div", { className: "about" },
        el("div", {}, chip(job.cancel_requested ? "canceling" : job.status)),
        el("h2", {}, prompt),
        el("p", { className: "hint" }, job.error && job.status === "failed" ? `${job.error.code}: ${job.error.message}` : facts.join(" · ")),
        el("div", { className: "buttons" },
          el("a", { className: "button quiet", href: `#job/${job.task_id}` }, "Open", el("span", { className: "visually-hidden" }, `: ${prompt}`)),
          el("button", { type: "button", className: "quiet", onclick: () => this.actions.reuse(settingsOf(job)) }, "Use settings", el("span", { className: "visually-hidden" }, ` of: ${prompt}`)))));
  }

  thumb(asset) {
    if (!asset?.url) return el("div", { className: "thumb" });
    const shown = asset.content_type.startsWith("video/")
      ? el("video", { preload: "metadata", muted: true, playsInline: true, "data-url": asset.url, "aria-hidden": "true", tabIndex: -1 })
      : el("img", { alt: "", "data-url": asset.url });
    this.near.observe(shown);
    return el("div", { className: "thumb" }, shown);
  }
}
