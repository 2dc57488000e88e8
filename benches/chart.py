"""The chart of the side-by-side benchmark: for each row, everybody's ratio to kernel overlayfs."""

import html
import math

from contestants import CONTESTANTS

COLORS = {
    "native": "#9e9e9e",
    "fo1": "#c9a227",
    "fo2": "#b5542c",
    "cached-ring": "#1f77b4",
    "passthrough-ring": "#2a9d5c",
}
LEFT, WIDTH, LINE, TOP = 330, 520, 22, 50
LOWEST, HIGHEST = 1 / 128, 64


def place(ratio):
    """Where a ratio lies on the logarithmic axis."""
    ratio = min(max(ratio, LOWEST), HIGHEST)
    share = (math.log2(ratio) - math.log2(LOWEST)) / (math.log2(HIGHEST) - math.log2(LOWEST))
    return LEFT + share * WIDTH


def draw(rows):
    """An SVG. `rows` as in side.json; times are ratios of times, rates inverse ratios."""
    rows = [row for row in rows if "kovl" in row["medians"]]
    height = TOP + LINE * len(rows) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="14">time relative to kernel overlayfs (1 is level with it, left is quicker)</text>',
    ]
    for number, (who, color) in enumerate(COLORS.items()):
        x = 8 + number * 175
        out.append(f'<circle cx="{x}" cy="28" r="4" fill="{color}"/>')
        out.append(f'<text x="{x + 8}" y="32">{html.escape(CONTESTANTS[who].name)}</text>')
    for power in range(round(math.log2(LOWEST)), round(math.log2(HIGHEST)) + 1, 2):
        x = place(2**power)
        label = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - 16}" stroke="{"#888" if power == 0 else "#ddd"}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle" font-size="10">{label}</text>')
    for number, row in enumerate(rows):
        y = TOP + LINE * number + LINE / 2
        out.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{html.escape(row["title"])}</text>')
        for who, color in COLORS.items():
            if who in row["medians"]:
                ratio = row["medians"][who] / row["medians"]["kovl"]
                x = place(ratio if row["unit"] == "s" else 1 / ratio)
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}" fill-opacity="0.85"/>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
