"""How long it takes until the package, and its command line, are there.

    python benchmarks/imports.py --out imports.json

Each command runs in a fresh interpreter, round by round, so that a busy machine slows all alike; the bare
interpreter's own time is taken off where a time is called "alone".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import cmrcnet": ["-c", "import cmrcnet"],
    "cmrcnet --help": ["-m", "cmrcnet", "--help"],
    "import torch": ["-c", "import torch"],
}
WANTED_SECONDS = {"import cmrcnet": 0.3, "cmrcnet --help": 1.0}
QUIET = "import sys, cmrcnet; sys.exit(bool({'torch', 'numpy', 'pandas', 'scanpy'} & set(sys.modules)))"


def seconds_of(arguments: list[str]) -> float:
    """Seconds of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def measure(repeats: int) -> dict:
    """Medians, and ratios to numpy's import, after one round that fills the disk's cache."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            took = seconds_of(arguments)
            if round_ > 0:
                seconds[name].append(took)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "python": sys.version.split()[0],
        "seconds": seconds,
        "median_seconds": median,
        "alone": {name: median[name] - median["python"] for name in COMMANDS if name != "python"},
        "times_numpy": {name: median[name] / median["import numpy"] for name in COMMANDS},
        "wanted_seconds": WANTED_SECONDS,
        "wakes_heavy_libraries": subprocess.run([sys.executable, "-c", QUIET], check=False).returncode != 0,
    }


def to_markdown(figures: dict) -> str:
    """A short table."""
    lines = ["| command | median | alone | times `import numpy` | wanted |", "|---|---|---|---|---|"]
    for name, median in figures["median_seconds"].items():
        alone = f"{figures['alone'][name]:.3f} s" if name in figures["alone"] else ""
        wanted = f"under {WANTED_SECONDS[name]:g} s" if name in WANTED_SECONDS else ""
        lines.append(f"| {name} | {median:.3f} s | {alone} | {figures['times_numpy'][name]:.2f} | {wanted} |")
    woken = "wakes" if figures["wakes_heavy_libraries"] else "wakes none of"
    return "\n".join([*lines, "", f"`import cmrcnet` {woken} torch, numpy, pandas, scanpy."])


def main() -> None:
    """Measure, print, write, and fail where a wish is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    figures = measure(options.repeats)
    print(to_markdown(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    missed = [name for name, most in WANTED_SECONDS.items() if figures["median_seconds"][name] >= most]
    if missed or figures["wakes_heavy_libraries"]:
        sys.exit(f"missed: {', '.join(missed) or 'a heavy library is woken'}")


if __name__ == "__main__":
    main()
