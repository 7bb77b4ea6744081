// The models: what is here, how large it is, and getting the rest.

import { byId, el, say, size } from "./dom.js";
import { get, Refused, send } from "./server.js";

const CHIPS = { installed: "good", damaged: "bad", missing: "" };
const POLL = 1000;

export class Models {
  constructor() {
    this.said = new Map();
    this.timer = null;
    this.abilities = null;
  }

  /** Read it all anew; again soon while something is on its way, if the view is open. */
  async load() {
    clearTimeout(this.timer);
    this.abilities ??= new Map((await get("/api/v1/wan-models/dashboard")).models.map((model) => [model.id, ability(model.capabilities)]));
    const [{ models }, { downloads }] = await Promise.all([get("/api/v1/models/status"), get("/api/v1/models/download/progress")]);
    this.draw(models, downloads);
    if (downloads.some(isMoving)) this.timer = setTimeout(() => { if (!byId("models").hidden) this.load(); }, POLL);
  }

  draw(models, progress) {
    const held = document.activeElement?.dataset?.action;
    const moving = new Map(progress.map((one) => [one.model, one]));
    byId("models-list").replaceChildren(...models.map((model) => this.item(model, moving.get(model.id))));
    if (held) document.querySelector(`[data-action="${CSS.escape(held)}"]`)?.focus();
  }

  item(model, download) {
    const here = model.status === "installed";
    const button = (verb, act, extra = {}) => el("button", { type: "button", className: "quiet", "data-action": `${verb} ${model.id}`, onclick: () => this.act(model.id, act), ...extra },
      verb, el("span", { className: "visually-hidden" }, ` ${model.id}`));
    const buttons = isMoving(download)
      ? [button("Cancel", () => send("DELETE", `/api/v1/models/download/${model.id}`))]
      : [here && button("Verify", () => this.verify(model.id)),
        !here && button(resumable(download) ? "Resume download" : "Download", () => send("POST", "/api/v1/models/download", { model: model.id }))];
    const bytes = !here ? `${model.stored_gb} GB to download` : model.memory_gb >= 0.1 ? `${model.memory_gb} GB` : null;
    const facts = [model.wan_task, bytes, !here && model.missing?.length ? `missing: ${model.missing.join(", ")}` : null].filter(Boolean);
    const checked = model.verified && (model.verified.result === "whole" ? "Every byte was checked" : "Differs from what it was made as: download it again");
    const said = this.said.get(model.id) || download?.error?.message || checked || "";
    return el("li", { className: "card" },
      el("h2", {}, model.id, " ", el("span", { className: `chip ${CHIPS[model.status] ?? ""}` }, model.status),
        model.weights === "tiny" && el("span", { className: "chip wait" }, "tiny (toy)"),
        model.loaded && el("span", { className: "chip good" }, "in memory")),
      el("div", { className: "buttons" }, ...buttons.filter(Boolean)),
      el("p", { className: "said" }, this.abilities.get(model.id)),
      el("p", { className: "hint said" }, facts.join(" · ")),
      isMoving(download) && el("progress", { "aria-label": `Download of ${model.id}`, max: 1, value: share(download) }),
      isMoving(download) && el("p", { className: "hint said" }, `${size(download.bytes_done)} of ${size(download.bytes_total)} · ${download.message}`),
      said && el("p", { className: "said" }, said));
  }

  async act(id, action) {
    this.note(id, "");
    try {
      await action();
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
      this.note(id, problem.message);
    }
    await this.load();
  }

  async verify(id) {
    say(byId("models-said"), `Verifying ${id}`);
    const found = await send("POST", `/api/v1/models/verify/${id}`);
    this.note(id, found.ok ? "Every file is whole." : `Damaged: ${(found.problems ?? []).join("; ")}`);
  }

  note(id, text) {
    this.said.set(id, text);
    if (text) say(byId("models-said"), `${id}: ${text}`);
  }
}

/** What a model is for, in a line. */
function ability({ text_to_video: text, image, last_image: last, native }) {
  const from = {
    "none none": "a text",
    "optional none": "a text, and a first frame if there is one",
    "required none": "a first frame",
    "required optional": "a first frame, to a last one if there is one",
    "required required": "a first frame to a last one",
    "optional optional": `${text ? "a text, " : ""}a first frame, a last one, or both`,
  }[`${image} ${last}`];
  return `Video from ${from}; at its best with ${native.width} × ${native.height}, ${native.num_frames} frames, ${native.fps} a second`;
}

const isMoving = (download) => download?.status === "downloading";
const resumable = (download) => download && !isMoving(download) && download.bytes_done > 0;
const share = (download) => (download.bytes_total ? download.bytes_done / download.bytes_total : 0);
