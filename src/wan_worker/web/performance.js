// How fast this worker has been: stages, jobs one by one, memory, failures.

import { byId, duration, el, say, when, words } from "./dom.js";
import { bars, columns } from "./charts.js";
import { get, Refused } from "./server.js";

const STAGES = { queue: "Waiting", load: "Loading", prompt: "Prompt", denoise: "Denoising", decode_encode: "Decode, encode", check: "Check", upload: "Saving", plan: "Planning", fetch: "Fetching", total: "Whole job" };

export class Performance {
  async load() {
    const [{ jobs }, metrics] = await Promise.all([get("/api/v1/generation?limit=50"), measured()]);
    const ended = jobs.filter((job) => job.started_at && job.ended_at);
    const done = ended.filter((job) => job.status === "completed");
    say(byId("performance-note"), ended.length
      ? "Measured on this machine; the plots show the last 50 jobs."
      : "Nothing measured yet: figures appear with the first job.");
    byId("tiles").replaceChildren(...tiles(ended, done, metrics));
    byId("charts").replaceChildren(...[
      done.length && stagesChart(done),
      ended.length && jobsChart(ended),
    ].filter(Boolean));
  }
}

async function measured() {
  try {
    return await get("/api/v1/performance/metrics");
  } catch (problem) {
    if (problem instanceof Refused) return null;
    throw problem;
  }
}

const seconds = (job) => (new Date(job.ended_at) - new Date(job.started_at)) / 1000;
const sorted = (values) => [...values].sort((a, b) => a - b);
const quantile = (values, share) => sorted(values)[Math.min(values.length - 1, Math.floor(share * values.length))];

function tiles(ended, done) {
  const times = done.map(seconds);
  const failed = ended.filter((job) => job.status === "failed").length;
  const found = [["Completed", String(done.length)], ["Failed", String(failed)]];
  if (times.length) found.push(["Half of the jobs within", duration(quantile(times, 0.5))], ["Nine of ten within", duration(quantile(times, 0.9))]);
  return found.map(([name, value]) => el("div", { className: "card tile" }, el("p", { className: "name" }, name), el("p", { className: "value" }, value)));
}

function stagesChart(done) {
  const timings = done.map((job) => job.result.metadata.timings);
  const names = Object.keys(STAGES).filter((name) => name !== "total" && timings.some((one) => one[name] > 0));
  const rows = names.map((name) => {
    const values = timings.map((one) => one[name] ?? 0);
    const [half, tenth] = [quantile(values, 0.5), quantile(values, 0.9)];
    return { name: STAGES[name], value: half, more: tenth, cells: [duration(half), duration(tenth)] };
  });
  return bars("Where the time goes: half of the jobs, and nine of ten", rows, ["Stage", "Half of jobs within", "Nine of ten within"], duration);
}

function jobsChart(ended) {
  const rows = [...ended].reverse().map((job) => ({
    name: when(job.ended_at), value: seconds(job), bad: job.status === "failed", cells: [words[job.status], duration(seconds(job))],
  }));
  return columns("Seconds of each job", rows, ["Ended", "Status", "Time"], duration);
}
