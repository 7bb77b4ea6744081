// How fast this worker has been: stages, jobs one by one, memory, failures.

import { byId, duration, el, say, when, words } from "./dom.js";
import { bars, columns } from "./charts.js";
import { get, Refused } from "./server.js";
import { Tuning } from "./tuning.js";

const STAGES = { queue: "Waiting", load: "Loading", prompt: "Prompt", denoise: "Denoising", decode_encode: "Decode, encode", check: "Check", upload: "Saving", plan: "Planning", fetch: "Fetching", total: "Whole job" };

export class Performance {
  constructor() {
    this.tuning = new Tuning();
  }

  async load() {
    await Promise.all([this.draw(), this.tuning.load()]);
  }

  async draw() {
    const [{ jobs }, report] = await Promise.all([get("/api/v1/generation?limit=50"), get("/api/v1/performance/metrics").catch(notYet)]);
    const ended = jobs.filter((job) => job.started_at && job.ended_at);
    const measured = report.models.filter((model) => model.jobs > 0);
    say(byId("performance-note"), measured.length
      ? `Measured on this machine since ${when(report.since)}; the slowest tenth is the fainter part of a bar.`
      : "Nothing measured yet: figures appear with the first job.");
    byId("tiles").replaceChildren(...tiles(report));
    byId("charts-title").hidden = !measured.length && !ended.length;
    byId("charts").replaceChildren(...measured.map(stagesChart), ...(ended.length ? [jobsChart(ended)] : []));
  }
}

/** While the engine starts, it has nothing to tell. */
function notYet(problem) {
  if (!(problem instanceof Refused)) throw problem;
  return { models: [], jobs: {}, memory: {}, estimates: { median: null }, failures: [] };
}

const seconds = (job) => (new Date(job.ended_at) - new Date(job.started_at)) / 1000;

function tiles({ jobs, memory, estimates, failures }) {
  const found = [
    ["Completed", jobs.completed],
    ["Failed", jobs.failed, failures.map(({ code, count }) => `${count} × ${code}`).join(", ")],
    ["Cancelled", jobs.canceled],
    ["GPU memory, at most", memory.gpu_peak_gb && `${memory.gpu_peak_gb} GB`],
    ["Main memory, at most", memory.process_peak_gb && `${memory.process_peak_gb} GB`],
    ["Estimates off by", estimates.median !== null && `${Math.round(100 * estimates.median)} %`, `of ${estimates.count} jobs, half by less`],
  ];
  return found.filter(([, value]) => value !== null && value !== false && value !== undefined).map(([name, value, more]) =>
    el("div", { className: "card tile" }, el("p", { className: "name" }, name), el("p", { className: "value" }, String(value)), more && el("p", { className: "name" }, more)));
}

function stagesChart({ model, jobs, stages }) {
  const rows = stages.filter(({ stage, count, median }) => stage !== "total" && count && median !== null)
    .map(({ stage, median, p90, p99 }) => ({ name: STAGES[stage] ?? stage, value: median, more: p90, cells: [median, p90, p99].map(duration) }));
  return bars(`${model}: where the time of ${jobs} ${jobs === 1 ? "job" : "jobs"} goes`, rows, ["Stage", "Median", "90 %", "99 %"], duration);
}

function jobsChart(ended) {
  const rows = [...ended].reverse().map((job) => ({
    name: when(job.ended_at), value: seconds(job), bad: job.status === "failed", cells: [words[job.status], duration(seconds(job))],
  }));
  return columns("The last jobs, one by one", rows, ["Ended", "Status", "Time"], duration);
}
