"""Every workload on every contestant, side by side: a table in Markdown and JSON, a chart."""

import json
import os
import statistics
import subprocess

import chart
from common import ROUNDS, TOP, Arena, machine, measure_output, progress, sh
from contestants import CONTESTANTS, LAMINA_MODES, USUAL, Source, io_uring_enabled
from workloads import SOURCES, WORKLOADS, AtMost

# The mode that `lamina mount` takes when root says nothing.
DEFAULT_MODE = "cached"
# The way of transport that targets are for.
TRANSPORT = "-ring"


def run(selected):
    """Runs the workloads named (all, if none is) and prints the table."""
    workloads = [workload for workload in WORKLOADS if not selected or workload.key in selected]
    sh(["cargo", "build", "--release", "--locked", "--quiet", "--examples"], cwd=TOP)
    rows = {}
    places = dict.fromkeys((workload.source, workload.filesystem) for workload in workloads)
    for source_name, filesystem in places:
        with Arena("side", filesystem) as arena, io_uring_enabled():
            source = Source(arena, "bench", SOURCES[source_name](arena))
            for workload in workloads:
                if (workload.source, workload.filesystem) == (source_name, filesystem):
                    rows |= contest(workload, source)
    ordered = {title: rows[title] for workload in workloads for title in titles(workload)}
    report(ordered)


def titles(workload):
    return [row.title for row in workload.rows.values()]


def contest(workload, source):
    """Runs a workload on all who take part, by turns. Row title → row and contestant → figures."""
    found = {phase: {who: [] for who in workload.who} for phase in workload.rows}
    failed = set()
    for number in range(ROUNDS):
        for who in workload.who:
            if who in failed:
                continue
            progress(f"{workload.key}, round {number + 1}: {CONTESTANTS[who].name}")
            try:
                figures = once(workload, source, CONTESTANTS[who])
            except RuntimeError as error:
                if who in LAMINA_MODES or who == "native":
                    raise
                progress(f"failed: {str(error)[-300:]}")
                failed.add(who)
                continue
            for phase in workload.rows:
                found[phase][who].append(figures[phase])
    return {row.title: (row, {who: runs for who, runs in found[phase].items() if runs and who not in failed})
            for phase, row in workload.rows.items()}


def once(workload, source, contestant):
    with contestant.at(source, workload.writes) as path:
        os.sync()
        if workload.prepare:
            workload.prepare(path, source)
        seconds, said = measure_output(workload.command(path), cwd=path)
    figures = {"total": seconds}
    for line in said.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] in workload.rows:
            figures[words[0]] = float(words[1])
    return figures


def verdicts(row, medians):
    """(what is wanted, what was reached, whether that is enough) for each target of a row."""
    mine = medians[(row.mode or DEFAULT_MODE) + TRANSPORT]
    is_rate = row.unit != "s"
    for target in row.targets:
        if isinstance(target, AtMost):
            yield f"≤ {target.limit * 1000:.0f} ms", f"{mine * 1000:.1f} ms", mine <= target.limit
        elif target.against in medians:
            ratio = mine / medians[target.against]
            sign = "≥" if is_rate else "≤"
            reached = ratio >= target.factor if is_rate else ratio <= target.factor
            yield f"{sign} {target.factor:.2g} × {target.against}", f"{ratio:.2f}", reached
    for peer in ("fo1", "fo2"):
        if peer in medians:
            ratio = mine / medians[peer]
            yield f"ahead of {peer}", f"{ratio:.2f}", ratio > 1 if is_rate else ratio < 1


def report(rows):
    columns = [*USUAL, *(who for who in CONTESTANTS if who not in USUAL and any(who in runs for _, runs in rows.values()))]
    print("## Side by side\n")
    print("Seconds (or a rate, where it says so); in brackets the ratio to kernel overlayfs.\n")
    print("| |" + "".join(f" {CONTESTANTS[who].name} |" for who in columns) + " targets |")
    print("|---|" + "---|" * (len(columns) + 1))
    data = []
    for title, (row, runs) in rows.items():
        medians = {who: statistics.median(figures) for who, figures in runs.items()}
        base = medians.get("kovl") or medians.get("kovl-metacopy")
        cells = [figure(medians.get(who), base, row.unit) for who in columns]
        wanted = list(verdicts(row, medians))
        shown = "; ".join(f"{'✓' if met else '**✗**'} {want}: {got}" for want, got, met in wanted)
        name = title if row.unit == "s" else f"{title} ({row.unit})"
        print(f"| {name} |" + "".join(f" {cell} |" for cell in cells) + f" {f'{row.mode}: ' if row.mode else ''}{shown} |")
        data.append({
            "title": title,
            "unit": row.unit,
            "runs": runs,
            "medians": medians,
            "targets": [{"target": want, "reached": got, "met": met} for want, got, met in wanted],
        })
    missed = sum(not target["met"] for row in data for target in row["targets"])
    print(f"\n{sum(len(row['targets']) for row in data)} targets, {missed} of them missed.\n", flush=True)
    out = os.environ.get("BENCH_OUT")
    if out:
        os.makedirs(out, exist_ok=True)
        with open(os.path.join(out, "side.json"), "w") as handle:
            json.dump({"machine": machine().strip(), "rows": data}, handle, indent=1)
        with open(os.path.join(out, "side.svg"), "w") as handle:
            handle.write(chart.draw(data))
        progress(f"wrote side.json and side.svg to {out}")


def figure(value, base, unit):
    if value is None:
        return ""
    text = f"{value:.3g}" if unit == "s" and value < 100 else f"{value:.0f}"
    return f"{text} ({value / base:.2f})" if base else text
