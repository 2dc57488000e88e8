"""Every workload on every contestant, side by side: a table in Markdown and JSON, a chart.

Contestants are compared within a row only, which is one run. With BENCH_OUT, rows of earlier runs that are not
measured anew stay in the table, each with its date and commit.
"""

import json
import os
import statistics
import subprocess

import chart
from common import ROUNDS, TOP, Arena, machine, measure_output, progress, sh
from contestants import CONTESTANTS, LAMINA_MODES, USUAL, Source, io_uring_enabled
from workloads import SOURCES, WORK, WORKLOADS, AtMost

# The mode that `lamina mount` takes when root says nothing.
DEFAULT_MODE = "cached"
# The way of transport that targets are for.
TRANSPORT = "-ring"


def run(selected):
    """Runs the workloads named (all, if none is) and prints the table."""
    workloads = [workload for workload in WORKLOADS if not selected or workload.key in selected]
    if os.environ.get("BENCH_WHO"):
        for workload in workloads:
            workload.who = os.environ["BENCH_WHO"].split(",")
    sh(["cargo", "build", "--release", "--locked", "--quiet", "--examples"], cwd=TOP)
    rows = {}
    places = dict.fromkeys((workload.source, workload.filesystem) for workload in workloads)
    for source_name, filesystem in places:
        with Arena("side", filesystem, reserved=source_name == "large") as arena, io_uring_enabled():
            source = Source(arena, "bench", SOURCES[source_name](arena))
            for workload in workloads:
                if (workload.source, workload.filesystem) == (source_name, filesystem):
                    rows |= contest(workload, source)
    report([describe(row, runs) for row, runs in in_order(rows, lambda title: rows[title])])


def in_order(known, value):
    """The values of the titles that are known, in the order of the workloads."""
    titles = [row.title for workload in WORKLOADS for row in workload.rows.values()]
    return [value(title) for title in titles if title in known]


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
        sh([WORK, "warm-memory", str(workload.memory << 30)])
        seconds, said = measure_output(workload.command(path), cwd=path)
    figures = {"total": seconds}
    for line in said.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] in workload.rows:
            figures[words[0]] = float(words[1])
    return figures


def verdicts(row, medians):
    """(what is wanted, what was reached, whether that is enough) for each target of a row."""
    mine = medians.get((row.mode or DEFAULT_MODE) + TRANSPORT)
    if mine is None:
        return
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


def describe(row, runs):
    """A row as it is in side.json."""
    medians = {who: statistics.median(figures) for who, figures in runs.items()}
    return {
        "title": row.title,
        "unit": row.unit,
        "mode": row.mode,
        "machine": machine().strip(),
        "runs": runs,
        "medians": medians,
        "targets": [{"target": want, "reached": got, "met": met} for want, got, met in verdicts(row, medians)],
    }


def report(rows):
    out = os.environ.get("BENCH_OUT")
    if not out:
        print(table(rows), flush=True)
        return
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "side.json")
    known = {}
    if os.path.exists(path):
        with open(path) as handle:
            known = {row["title"]: row for row in json.load(handle)["rows"]}
    known |= {row["title"]: row for row in rows}
    rows = in_order(known, lambda title: known[title])
    text = table(rows)
    print(text, flush=True)
    for name, content in {"side.json": json.dumps({"rows": rows}, indent=1), "side.md": text, "side.svg": chart.draw(rows)}.items():
        with open(os.path.join(out, name), "w") as handle:
            handle.write(content)
    progress(f"wrote side.json, side.md and side.svg to {out}")


def table(rows):
    """The rows in Markdown."""
    there = {who for row in rows for who in row["medians"]}
    columns = [who for who in CONTESTANTS if who in there]
    lines = [
        "Seconds (or a rate, where it says so); in brackets the ratio to kernel overlayfs.\n",
        "| |" + "".join(f" {CONTESTANTS[who].name} |" for who in columns) + " targets |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for row in rows:
        medians = row["medians"]
        base = medians.get("kovl") or medians.get("kovl-metacopy")
        cells = "".join(f" {figure(medians.get(who), base, row['unit'])} |" for who in columns)
        shown = "; ".join(f"{'✓' if one['met'] else '**✗**'} {one['target']}: {one['reached']}" for one in row["targets"])
        name = row["title"] if row["unit"] == "s" else f"{row['title']} ({row['unit']})"
        lines.append(f"| {name} |{cells} {row['mode'] + ': ' if row['mode'] else ''}{shown} |")
    missed = sum(not one["met"] for row in rows for one in row["targets"])
    lines.append(f"\n{sum(len(row['targets']) for row in rows)} targets, {missed} of them missed.\n")
    return "\n".join(lines)


def figure(value, base, unit):
    if value is None:
        return ""
    text = f"{value:.3g}" if unit == "s" and value < 100 else f"{value:.0f}"
    return f"{text} ({value / base:.2f})" if base else text
