"""How long `--help` takes, beside a Typer app with one command.

    python benchmarks/startup.py [ROUNDS]

The commands take turns, so that a busy moment of the machine meets all of them; the median of each is shown.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

BARE = """
import typer
app = typer.Typer()
@app.command()
def greet(name: str = "you") -> None:
    "Say hello."
app()
"""
COMMANDS = {
    "bare Typer app": [sys.executable, "-c", BARE, "--help"],
    "medseg": [sys.executable, "-c", "from medseg_core.cli import app; app()", "--help"],
    "medseg totalseg train": [
        sys.executable,
        "-c",
        "from medseg_core.cli import app; app()",
        "totalseg",
        "train",
        "--help",
    ],
    "medseg-totalseg": [sys.executable, "-c", "from medseg_totalseg.cli import app; app()", "--help"],
}


def seconds(
    commands: Mapping[str, Sequence[str]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each command by this clock, in turns; the first round only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            begun = clock()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                taken[name].append(clock() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Prints a row per command."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    medians = seconds(COMMANDS, rounds=rounds)
    bare = medians["bare Typer app"]
    print(f"{'--help of':24}{'seconds':>10}{'x bare':>10}   (median of {rounds})")
    for name, value in medians.items():
        print(f"{name:24}{value:10.3f}{value / bare:10.2f}")


if __name__ == "__main__":
    main()
