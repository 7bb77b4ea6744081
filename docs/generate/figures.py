"""Tables and plots of what benchmarks/*.json hold, for the README and performance.md.

Pure functions of the JSON files.
Not covered: measuring (benchmarks/).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text("utf-8"))
    return report


def figures_table() -> str:
    """Every figure that has a bar, with what it came to."""
    job, start, memory, loading = read("job"), read("startup"), read("memory"), read("loading")
    stages, overhead, overlap = job["stages"], job["overhead"], job["overlap"]
    estimated = read("estimates")
    learned, wall = (
        estimated[clock]["before_by_jobs_learned"]["9"] for clock in ("processor", "wall")
    )
    load = estimated["wall"]["load_average"][0]
    clip = stages["clip"]
    size = f"{clip['width']}x{clip['height']}, {clip['num_frames']} frames"
    rows = [
        (
            f"everything after the latents but the decoder itself ({size}), against stock",
            times(stages["ours_to_stock_outside"]),
            "0.25",
            "job.py",
        ),
        (
            "peak memory above the weights, latents to file (416x240, 161 frames), against stock",
            times(memory["ours_to_stock_161"]),
            "0.5",
            "memory.py",
        ),
        (
            "the same, 161 frames against 33",
            f"{times(memory['ours_161_to_33'])}; stock: {times(memory['stock_161_to_33'])}",
            "1.10",
            "memory.py",
        ),
        (
            "a job less the time inside pipeline, decoder and encoder",
            f"{overhead['overhead_ms']:.0f} ms; least {overhead['least_overhead_ms']:.0f} ms",
            "40 ms",
            "job.py",
        ),
        (
            "two jobs at once, uploading to a slow store, against in turn",
            f"{times(overlap['overlapped_to_in_turn'])}, the upload being "
            f"{overlap['upload_share_of_a_job']:.0%} of a job",
            "0.85",
            "job.py",
        ),
        (
            "process start to first job-take, against a bare `import runpod`",
            f"{times(start['ratio'])} ({start['first_take_s']:.1f} s)",
            "1.5",
            "startup.py",
        ),
        (
            "a job whose status is asked for 200 times a second, on two cores, against left alone",
            f"{times(read('polling')['watched_to_alone'])}, median of {read('polling')['rounds']}",
            "1.05",
            "polling.py",
        ),
        (
            "a rejected job",
            f"{start['rejected_job_ms']:.1f} ms, torch "
            f"{'imported' if start['rejection_imported_torch'] else 'not imported'}",
            "",
            "startup.py",
        ),
        (
            "weights from a cold disk to memory, against reading the files raw",
            f"{times(loading['worker_against_raw'])} the rate "
            f"({loading['mb_per_s']['worker'] / 1000:.1f} GB/s)",
            "",
            "loading.py",
        ),
        (
            "the time told before a job of a size not seen yet, after 9 others: how far off",
            f"median {learned['median']:.0%}, nine of ten within {learned['p90']:.0%}, in "
            "processor time; by the wall's clock, beside a load of "
            f"{load:.1f}, {wall['median']:.0%} and {wall['p90']:.0%}",
            "",
            "estimates.py",
        ),
    ]
    lines = ["| what | figure | at most | script |", "|---|---|---|---|"]
    lines += [f"| {what} | {figure} | {bar} | `{script}` |" for what, figure, bar, script in rows]
    return "\n".join(lines)


def times(ratio: float) -> str:
    return f"{ratio:.2f} times"


STAGES = {
    "prompt": "text encoder and tokenizer",
    "transformer": "transformer",
    "decoder": "decoder's network",
    "convert": "pixels: joining, scaling, rounding",
    "encoder": "waiting for ffmpeg",
    "check": "reading the file back",
    "upload": "upload",
    "outside": "**after the latents, without the decoder**",
    "total": "**whole job**",
}


def stages_table() -> str:
    """Seconds of each stage, both ways."""
    stages = read("job")["stages"]
    middle = stages["seconds"]
    lines = ["| seconds, medians | stock | ours | ratio |", "|---|---|---|---|"]
    for stage, title in STAGES.items():
        cells = [f"{middle[way][stage]:.2f}" if stage in middle[way] else "–" for way in WAYS]
        both = all(middle[way].get(stage, 0) > 0 for way in WAYS)
        ratio = f"{middle['ours'][stage] / middle['stock'][stage]:.2f}" if both else ""
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


WAYS = ("stock", "ours")


def overhead_table() -> str:
    """Where a small job's own time goes."""
    overhead = read("job")["overhead"]
    named = overhead["of_which_ms"]
    titles = {
        "convert": "pixels to bytes",
        "check": "reading the file back",
        "upload": "upload, HEAD, manifest, URL",
    }
    rest = overhead["overhead_ms"] - sum(named.values())
    lines = ["| milliseconds, medians | |", "|---|---|"]
    lines += [f"| {titles[stage]} | {value:.0f} |" for stage, value in named.items()]
    lines.append(f"| request, plan, pipeline, temporary folder, answer | {rest:.0f} |")
    lines.append(f"| **together** | {overhead['overhead_ms']:.0f} |")
    return "\n".join(lines)


def start_table() -> str:
    """A new worker's first job up to its first denoising step."""
    start = read("startup")
    first = start["first_job_s"]
    titles = {
        "plan": "request and plan",
        "load": "imports, and loading the tiny weights",
        "prompt": "text encoder",
        "to_first_step": "**job taken to first denoising step done**",
    }
    lines = ["| seconds, medians | |", "|---|---|"]
    lines += [f"| {title} | {first[stage]:.2f} |" for stage, title in titles.items()]
    lines += [f"| `import` alone: {n} | {value:.2f} |" for n, value in start["imports_s"].items()]
    return "\n".join(lines)


def machines_table() -> str:
    """On what the figures were measured, and when."""
    job = read("job")
    rows = {f"job.py, {name}": job[name] for name in ("stages", "overhead", "overlap")}
    rows |= {f"{name}.py": read(name) for name in ("memory", "startup", "loading")}
    estimates = read("estimates")
    rows["estimates.py"] = estimates | {
        "load_average": estimates["wall"]["load_average"],
        "rounds": f"{estimates['wall']['jobs']} jobs",
    }
    lines = ["| script | machine | load average | rounds | date |", "|---|---|---|---|---|"]
    for name, about in rows.items():
        load = about.get("load_average")
        busy = f"{load[0]:.1f}" if load else "not kept"
        cells = (name, about["machine"], busy, about.get("rounds", ""), about["date"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def estimates_table() -> str:
    """How far off times are before a job, by what was learned, and while it runs."""
    found = read("estimates")
    clocks = {"wall": "wall's clock", "processor": "processor time"}
    cells = [f"{clock}: median | nine of ten within" for clock in clocks.values()]
    lines = [f"| {' | '.join(['', *cells])} |", "|---|---|---|---|---|"]

    def row(title: str, pick: Callable[[dict[str, Any]], dict[str, float]]) -> None:
        values = [f"{pick(found[clock])[key]:.0%}" for clock in clocks for key in ("median", "p90")]
        lines.append(f"| {' | '.join([title, *values])} |")

    for count in found["wall"]["before_by_jobs_learned"]:
        title = {"0": "before: nothing learned", "1": "before: 1 job learned from"}.get(
            count, f"before: {count} jobs"
        )
        row(title, lambda clock, count=count: clock["before_by_jobs_learned"][count])
    for share in found["wall"]["left_by_share_passed"]:
        row(
            f"time left, {share} of the job over",
            lambda clock, share=share: clock["left_by_share_passed"][share],
        )
    row("one job repeated, against its median", lambda clock: clock["one_job_repeated"])
    return "\n".join(lines)


def roofline_table() -> str:
    """Every model's native clip."""
    roof = read("roofline")
    lines = [
        "| model, native clip | tokens | forward, TFLOP | decode, TFLOP | forward, s "
        "| step with guidance, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in roof["models"]:
        lines.append(
            f"| `{row['model']}`, {row['size']}, {row['frames']} frames | {row['tokens']:,} "
            f"| {row['forward_tflop']:,.0f} | {row['decode_tflop']:,.0f} "
            f"| {row['forward_s']:.2f} | {row['cfg_step_s']:.2f} |"
        )
    return "\n".join(lines)


def peaks_table() -> str:
    """Dense bf16 peaks by card."""
    lines = ["| card | TFLOP/s | source |", "|---|---|---|"]
    for name, found in read("roofline")["peaks"].items():
        lines.append(f"| {name} | {found['tflops']:,.0f} | {found['source']} |")
    return "\n".join(lines)


def levers_table() -> str:
    """Ways to compute the same on a CPU, against stock."""
    report = read("levers")
    lines = [
        "| of stock's time, two blocks at full width | " + " | ".join(report["images"]) + " |",
        "|---|" + "---|" * len(report["images"]),
    ]
    for way, said in (("together", "guidance in one forward"), ("fused", "fused projections")):
        cells = [f"{image['to_stock'][way]:.2f}" for image in report["images"].values()]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def vae_table() -> str:
    """Our ways through the VAE, against diffusers'."""
    lines = ["| all channels, small frames | of diffusers' time |", "|---|---|"]
    report = read("levers")
    for name, found in report["decoders"].items():
        high, wide = found["latents"]
        said = f"{name} decoder, four frames amid a clip, of {wide}x{high} latents"
        lines.append(f"| {said} | {found['to_stock']['ours']:.2f} |")
    for found in report["encoders"]:
        high, wide = found["latents"]
        said = f"{found['frames']} frames, {found['clip']}, of {wide}x{high} latents"
        lines.append(f"| Wan 2.1's encoder, {said} | {found['to_stock']['ours']:.2f} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "figures": figures_table,
    "stages": stages_table,
    "overhead": overhead_table,
    "start": start_table,
    "machines": machines_table,
    "estimates": estimates_table,
    "roofline": roofline_table,
    "peaks": peaks_table,
    "levers": levers_table,
    "vae": vae_table,
}
"""The places in performance.md."""


def stages_plot() -> str:
    """What surrounds the decoder, as bars of seconds on one scale."""
    middle = read("job")["stages"]["seconds"]
    bars = [
        (f"{way}: {STAGES[stage]}", middle[way][stage])
        for stage in ("convert", "encoder", "check", "upload")
        for way in WAYS
        if stage in middle[way]
    ]
    return _bars("Seconds after the latents, without the decoder", bars, "s")


def memory_plot() -> str:
    """Peak megabytes of both ways at both lengths."""
    cases = read("memory")["cases"]
    bars = [
        (f"{way}: {frames} frames", cases[f"{way}_{frames}"]["process_mb"]
         + cases[f"{way}_{frames}"]["encoder_mb"])
        for frames in (33, 161)
        for way in WAYS
    ]  # fmt: skip
    return _bars("Peak memory above the weights, latents to file, 416x240", bars, "MB")


def _bars(title: str, bars: list[tuple[str, float]], unit: str) -> str:
    """Horizontal bars as an SVG, ours in another colour than stock."""
    left, width, row, top = 300, 360, 24, 44
    longest = max(value for _, value in bars)
    height = top + row * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {height}" '
        'font-family="sans-serif" font-size="13">',
        "<!-- written by make docs -->",
        f'<rect width="{left + width + 110}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="24" font-size="15" font-weight="bold">{title}</text>',
    ]
    for index, (label, value) in enumerate(bars):
        y = top + row * index
        colour = "#1f77b4" if label.startswith("ours") else "#b0b0b0"
        length = max(1.0, width * value / longest)
        lines += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{label}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 6}" fill="{colour}"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 14}">{value:.3g} {unit}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])


PLOTS: dict[str, Callable[[], str]] = {
    "stages.svg": stages_plot,
    "memory.svg": memory_plot,
}
"""By file in docs/."""
