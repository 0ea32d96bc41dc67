#!/usr/bin/env python3
"""Runs a command and draws what it says, when it says it, as a picture that moves: docs/images/terminal.svg.

    scripts/record-terminal.py docs/images/terminal.svg target/release/outboxd dev --demo

Standard output alone is drawn. Where nothing moves (in print, say) the last state is seen.
"""

import subprocess
import sys
import time
from html import escape
from pathlib import Path

COLUMNS, LINE, CHARACTER, MARGIN = 112, 20, 7.8, 16
# Nobody wants to watch a database being made; a line a time is still read.
LONGEST_PAUSE, SHORTEST_PAUSE = 1.0, 0.12
STAYS = 8.0


def record(command: list[str]) -> list[tuple[float, str]]:
    """Each line with its time, pauses shortened."""
    lines, shown, last = [], 0.8, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            now = time.monotonic()
            shown += min(max(now - last, SHORTEST_PAUSE), LONGEST_PAUSE)
            last = now
            lines.append((shown, line.rstrip("\n")))
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return lines


def draw(prompt: str, lines: list[tuple[float, str]]) -> str:
    whole = lines[-1][0] + STAYS
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, (len(lines) + 1) * LINE + 2 * MARGIN + 24
    said = f"A terminal: {prompt}\n" + "\n".join(text for _, text in lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(said)}</title>",
        "<style>",
        f"text {{ font: 13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #d6deeb; white-space: pre }}",
        f"@media (prefers-reduced-motion: no-preference) {{ .line {{ animation-duration: {whole:.2f}s; animation-iteration-count: infinite; animation-timing-function: step-end }} }}",
    ]
    for number, (at, _) in enumerate(lines):
        share = 100 * at / whole
        parts.append(f"@keyframes l{number} {{ 0% {{ opacity: 0 }} {share:.2f}% {{ opacity: 1 }} }}")
        parts.append(f".l{number} {{ animation-name: l{number} }}")
    parts += [
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#10151f"/>',
        *(f'<circle cx="{MARGIN + 6 + 18 * n}" cy="18" r="5" fill="{colour}"/>' for n, colour in enumerate(["#e06c75", "#e5c07b", "#98c379"])),
        f'<text x="{MARGIN}" y="{MARGIN + 24 + LINE}"><tspan fill="#98c379">$</tspan> {escape(prompt)}</text>',
    ]
    for number, (_, text) in enumerate(lines):
        y = MARGIN + 24 + LINE * (number + 2)
        parts.append(f'<text class="line l{number}" x="{MARGIN}" y="{y}">{escape(text[:COLUMNS])}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    picture, *command = sys.argv[1:]
    lines = record(command)
    prompt = " ".join([Path(command[0]).name, *command[1:]])
    Path(picture).write_text(draw(prompt, lines))


main()
