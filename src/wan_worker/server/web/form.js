// The form: fields made from the request's own schema, what they hold as a request, and errors
// beside the field that the server names.

import { byId, el, say, size } from "./dom.js";
import { Refused } from "./server.js";

const MAIN = ["job_type", "model", "size", "duration", "num_inference_steps", "seed"];

/** Made by hand in the page, or nothing that a person would fill in here. */
const ELSEWHERE = new Set([
  "mode", "prompt", "image_url", "last_image_url", "profile", "width", "height", "response_format",
  "callback_url", "reference_fallback", "config", "metadata", "report", "request",
]);

const LABELS = {
  job_type: "Preset", size: "Size", duration: "Seconds", num_inference_steps: "Steps", fps: "Frames per second",
  num_frames: "Frames", num_outputs: "How many", loras: "LoRAs", enhance_prompt: "Rewrite the prompt first",
  guidance_scale: "Guidance", guidance_scale_2: "Low-noise guidance", flow_shift: "Shift",
};
const UNSET = { job_type: "none", upscale: "no" };
const SIZES = ["832x480", "480x832", "1280x720", "720x1280", "624x624", "1024x576"];
const PICTURES = ["image_url", "last_image_url"];
const PICTURE_HINTS = { image_url: "PNG, JPEG or WebP; optional", last_image_url: "For models that take one" };
const STAND_IN = "data:image/png;base64,AA==";
const PAUSE_MS = 500;

/** A picture is sent as text: 4 characters for 3 bytes, within the schema's limit. */
const bytesFor = (characters) => Math.floor((characters - 64) / 4) * 3;

const label = (name) => LABELS[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

export class Form {
  /**
   * @param onSubmit gets the request; may throw what the server refuses.
   * @param onChange gets it now and then while it is written.
   */
  constructor(schema, onSubmit, onChange) {
    this.schema = schema;
    this.form = byId("form");
    this.pictures = {};
    this.readers = {};
    const more = Object.keys(schema.properties).filter(
      (name) => !MAIN.includes(name) && !ELSEWHERE.has(name) && !schema.properties[name]["x-alias-of"]);
    byId("main-fields").append(...MAIN.filter((name) => schema.properties[name]).map((name) => this.field(name)));
    byId("more-fields").append(...more.map((name) => this.field(name)));
    for (const name of PICTURES) this.pictureField(name);
    this.form.addEventListener("change", (event) => { if (event.target.name === "mode") this.modeChanged(); });
    this.form.addEventListener("input", (event) => this.clearError(event.target.closest("[data-field]")?.dataset.field));
    this.form.addEventListener("reset", () => setTimeout(() => this.fill({})));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(onSubmit); });
    byId("f-prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.submit(onSubmit); }
    });
    let pause;
    const changed = () => { clearTimeout(pause); pause = setTimeout(() => this.tell(onChange), PAUSE_MS); };
    for (const kind of ["input", "change", "reset"]) this.form.addEventListener(kind, changed);
    this.modeChanged();
  }

  /** With a stand-in for each picture: what is planned does not depend on what is in it. */
  tell(onChange) {
    try {
      const asked = this.request();
      for (const name of PICTURES) if (asked[name]) asked[name] = STAND_IN;
      onChange(asked);
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
    }
  }

  get mode() { return this.form.elements.mode.value; }

  /** One field of the schema: its label, its control, what it means, and a place for its error. */
  field(name) {
    const rule = this.schema.properties[name];
    if (rule.items?.properties) return this.rowsField(name, rule);
    const describedby = `h-${name} e-${name}`;
    const shared = { id: `f-${name}`, name, "aria-describedby": describedby };
    let control;
    if (rule.enum) {
      const unset = rule.default === undefined ? "" : null;
      const choices = rule.enum.map((value) => el("option", { value: String(value), selected: value === rule.default }, String(value)));
      control = el("select", shared, unset === "" && el("option", { value: "" }, UNSET[name] ?? "auto"), ...choices);
      this.readers[name] = () => (control.value === "" || control.value === String(rule.default) ? undefined
        : rule.enum.find((value) => String(value) === control.value));
    } else if (rule.type === "boolean") {
      control = el("input", { ...shared, type: "checkbox", checked: rule.default === true });
      this.readers[name] = () => (control.checked === (rule.default === true) ? undefined : control.checked);
    } else if (rule.type === "integer" || rule.type === "number") {
      control = el("input", {
        ...shared, type: "number", inputMode: rule.type === "integer" ? "numeric" : "decimal",
        min: rule.minimum, max: rule.maximum, step: rule.type === "integer" ? "1" : "any",
        placeholder: rule.default ?? (name === "seed" ? "random" : "auto"),
      });
      this.readers[name] = () => {
        if (control.validity.badInput) throw new Refused(0, { message: "This is not a number", field: name });
        if (control.value === "") return undefined;
        // A seed may be larger than what a number here holds exactly.
        if (rule.type === "integer" && !Number.isSafeInteger(Number(control.value)) && /^\d+$/.test(control.value)) return JSON.rawJSON?.(control.value) ?? Number(control.value);
        return Number(control.value);
      };
    } else {
      const long = name === "negative_prompt";
      control = el(long ? "textarea" : "input", { ...shared, ...(long ? { rows: 2 } : { type: "text", autocomplete: "off" }), placeholder: long ? "Wan's own" : "auto" });
      if (name === "size") {
        control.setAttribute("list", "sizes");
        this.form.append(el("datalist", { id: "sizes" }, ...SIZES.map((value) => el("option", { value }))));
      }
      this.readers[name] = () => (control.value.trim() === "" ? undefined : control.value.trim());
    }
    const heading = el("label", { for: `f-${name}` }, label(name));
    const [help, hint] = explained(name, rule);
    const body = rule.type === "boolean"
      ? [el("div", { className: "check" }, control, heading, help)]
      : [heading, control, help]; // in the order in which Tab goes; it is drawn beside the label
    const wide = rule.type === "boolean" || name === "negative_prompt";
    return el("div", { className: wide ? "field wide" : "field", "data-field": name }, ...body, el("p", { className: "error", id: `e-${name}` }), hint);
  }

  /** A list of objects: rows that can be added and removed. */
  rowsField(name, rule) {
    const rows = el("div", { className: "rows" });
    const columns = Object.entries(rule.items.properties);
    const add = (given = {}) => {
      const number = rows.childElementCount + 1;
      const controls = columns.map(([column, its]) => its.enum
        ? el("select", { "data-column": column }, ...its.enum.map((value) => el("option", { value, selected: value === (given[column] ?? its.default) }, value)))
        : el("input", { "data-column": column, type: its.type === "number" ? "number" : "text", step: "any", min: its.minimum, max: its.maximum, value: given[column] ?? its.default ?? "" }));
      const row = el("div", { className: "row", role: "group", "aria-label": `LoRA ${number}` },
        ...controls.map((control, index) => el("label", {}, label(columns[index][0]), control)),
        el("button", { type: "button", className: "quiet", onclick: () => { row.remove(); adder.focus(); } }, "Remove"));
      rows.append(row);
      return controls[0];
    };
    const adder = el("button", { type: "button", className: "quiet", id: `f-${name}`, "aria-describedby": `h-${name} e-${name}`, onclick: () => add().focus() }, "Add a LoRA");
    this.readers[name] = () => {
      const found = [...rows.children].map((row) => Object.fromEntries([...row.querySelectorAll("[data-column]")]
        .filter((control) => control.value !== "")
        .map((control) => [control.dataset.column, control.type === "number" ? Number(control.value) : control.value])));
      return found.length ? found : undefined;
    };
    this.fillRows = (given) => { rows.replaceChildren(); for (const one of given ?? []) add(one); };
    const [help, hint] = explained(name, rule);
    return el("fieldset", { className: "field wide", "data-field": name }, el("legend", {}, label(name)), rows,
      el("div", {}, adder), help, el("p", { className: "error", id: `e-${name}` }), hint);
  }

  pictureField(name) {
    const box = this.form.querySelector(`[data-field="${name}"]`);
    const input = box.querySelector("input");
    const take = (file) => { this.take(name, file).catch((problem) => this.showError(problem)); };
    input.addEventListener("change", () => { if (input.files[0]) take(input.files[0]); });
    box.querySelector(".remove").addEventListener("click", () => { this.forget(name); input.focus(); });
    box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      box.classList.remove("over");
      if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    });
  }

  /** Take a picture, where the server would: it is checked before it is sent. */
  async take(name, file) {
    this.clearError(name);
    const most = bytesFor(this.schema.properties[name].maxLength);
    if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
      this.forget(name);
      throw new Refused(0, { field: name, message: "Choose a PNG, JPEG or WebP file" });
    }
    if (file.size > most) {
      this.forget(name);
      throw new Refused(0, { field: name, message: `This file has ${size(file.size)}; at most ${size(most)} can be sent` });
    }
    const uri = await new Promise((done, fail) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = () => fail(new Refused(0, { field: name, message: "This file can't be read" }));
      reader.readAsDataURL(file);
    });
    this.pictures[name] = uri;
    const box = this.form.querySelector(`[data-field="${name}"]`);
    box.querySelector(".frame").replaceChildren(el("img", { src: uri, alt: "" }));
    box.querySelector(".remove").hidden = false;
    say(byId(`h-${name}`), `${file.name}, ${size(file.size)}`);
  }

  forget(name) {
    delete this.pictures[name];
    const box = this.form.querySelector(`[data-field="${name}"]`);
    box.querySelector("input").value = "";
    box.querySelector(".frame").replaceChildren();
    box.querySelector(".remove").hidden = true;
    say(byId(`h-${name}`), PICTURE_HINTS[name]);
  }

  /** Presets and file formats are a video's or an image's. */
  modeChanged() {
    const image = this.mode === "image";
    const name = byId("f-image_url").closest(".field").querySelector(".name");
    say(name, image ? name.dataset.image : name.dataset.video);
    this.form.querySelector('[data-field="last_image_url"]').hidden = image;
    for (const only of ["duration", "num_frames", "fps"]) this.form.querySelector(`[data-field="${only}"]`).hidden = image;
    const strength = this.form.querySelector('[data-field="strength"]');
    if (strength) strength.hidden = !image;
    const fits = { job_type: (value) => value.startsWith(this.mode), output_format: (value) => ["png", "jpeg", "webp"].includes(value) === image };
    for (const [field, test] of Object.entries(fits)) {
      const select = byId(`f-${field}`);
      for (const option of select.options) option.hidden = option.disabled = option.value !== "" && !test(option.value);
      if (select.selectedOptions[0]?.disabled) select.value = "";
    }
  }

  /** What the form asks for; fields left alone are left out. */
  request() {
    const asked = { mode: this.mode };
    const prompt = byId("f-prompt").value.trim();
    if (prompt) asked.prompt = prompt;
    for (const name of PICTURES) if (this.pictures[name] && !byId(`f-${name}`).closest(".field").hidden) asked[name] = this.pictures[name];
    for (const [name, read] of Object.entries(this.readers)) {
      if (byId(`f-${name}`).closest("[data-field]").hidden) continue;
      const value = read();
      if (value !== undefined) asked[name] = value;
    }
    return asked;
  }

  /** Set the form to a request of before; pictures are not kept, and have to be chosen again. */
  fill(given) {
    this.clearErrors();
    const request = this.canonical(given);
    const mode = request.mode ?? (request.job_type ?? "video").match(/^(image|video)/)?.[0] ?? "video";
    this.form.elements.mode.value = mode;
    byId("f-prompt").value = [request.prompt ?? ""].flat().join("\n");
    for (const name of PICTURES) {
      this.forget(name);
      if (/^https?:/.test(request[name])) this.pictures[name] = request[name];
      if (request[name]) say(byId(`h-${name}`), this.pictures[name] ? `From ${new URL(request[name]).host}` : "It is not kept: choose it again");
      this.form.querySelector(`[data-field="${name}"] .remove`).hidden = !this.pictures[name];
    }
    for (const name of Object.keys(this.readers)) {
      const control = byId(`f-${name}`);
      const rule = this.schema.properties[name];
      const value = request[name] ?? rule.default;
      if (rule.items) this.fillRows(request[name]);
      else if (control.type === "checkbox") control.checked = value === true;
      else control.value = request[name] ?? (control.tagName === "SELECT" ? rule.default ?? "" : "");
    }
    this.modeChanged();
  }

  /** The request by its fields' own names. */
  canonical(given) {
    const request = {};
    for (const [name, value] of Object.entries(given)) request[this.schema.properties[name]?.["x-alias-of"] ?? name] = value;
    if (request.width && request.height) request.size = `${request.width}x${request.height}`;
    return request;
  }

  async submit(onSubmit) {
    const button = byId("submit");
    if (button.getAttribute("aria-disabled") === "true") return;
    this.clearErrors();
    button.setAttribute("aria-disabled", "true"); // stays in the focus order
    try {
      await onSubmit(this.request());
    } catch (problem) {
      this.showError(problem);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  /** Beside the field that is at fault, with the focus there; else above the form. */
  showError(problem) {
    if (!(problem instanceof Refused)) throw problem;
    const name = this.schema.properties[problem.field]?.["x-alias-of"] ?? problem.field;
    const place = name && byId(`e-${name}`);
    const box = place?.closest("[data-field]");
    if (!place || box.hidden) {
      const summary = byId("form-error");
      summary.hidden = false;
      say(summary, problem.field ? `${problem.field}: ${problem.message}` : problem.message);
      return;
    }
    say(place, problem.message);
    const control = byId(`f-${name}`) ?? box.querySelector("input");
    control.setAttribute("aria-invalid", "true");
    if (control.closest("details")) control.closest("details").open = true;
    control.focus();
  }

  clearError(name) {
    const place = name && byId(`e-${name}`);
    if (!place) return;
    say(place, "");
    byId(`f-${name}`)?.removeAttribute("aria-invalid");
  }

  clearErrors() {
    byId("form-error").hidden = true;
    for (const box of this.form.querySelectorAll("[data-field]")) this.clearError(box.dataset.field);
  }

  /** Models that are not installed can't be chosen. */
  setModels(models) {
    const about = new Map(models.map((model) => [model.id, model]));
    for (const option of byId("f-model").options) {
      const model = about.get(option.value);
      if (!model) continue;
      option.disabled = model.status !== "installed";
      option.textContent = option.disabled ? `${model.id} (${model.status})` : model.id;
    }
  }
}

/** What a field means: read with it by screen readers, and shown where it is asked for. */
function explained(name, rule) {
  const hint = el("p", { className: "hint", id: `h-${name}`, hidden: true }, rule.description ?? "");
  const help = el("button", { type: "button", className: "help", "aria-expanded": "false", "aria-controls": hint.id, "aria-label": `About ${label(name)}` }, "?");
  help.addEventListener("click", () => {
    hint.hidden = !hint.hidden;
    help.setAttribute("aria-expanded", String(!hint.hidden));
  });
  return [help, hint];
}
