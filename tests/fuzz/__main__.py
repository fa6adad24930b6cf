"""The campaign's command line."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.run import TIMEOUT_S, case, keep, run, warm_up


def main() -> int:
    """Run cases and say which went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first case's number")
    parser.add_argument("--only", type=int, help="one case, shown")
    parser.add_argument("--keep", type=Path, help="a folder for the files of cases that went wrong")
    parser.add_argument("--timeout", type=int, default=TIMEOUT_S, help="seconds of a case")
    given = parser.parse_args()
    warm_up()
    numbers = range(given.start, given.start + given.n) if given.only is None else (given.only,)
    codes: Counter[int] = Counter()
    finds = 0
    for number in numbers:
        wanted = case(given.seed, number)
        outcome = run(wanted, timeout=given.timeout)
        codes[outcome.code] += 1
        if given.only is not None:
            print(wanted.name, "\nonnxdecomp", *wanted.line)
            print(outcome.err, end="")
        if outcome.wrong:
            finds += 1
            print(
                f"{number}: {'; '.join(outcome.wrong)} ({wanted.name}; {' '.join(wanted.line)})", flush=True
            )
        if given.keep is not None and (outcome.wrong or given.only is not None):
            keep(wanted, outcome, given.keep / f"{given.seed}-{number}")
        if number % 500 == 499:
            print(f"... {number + 1}", file=sys.stderr, flush=True)
    counts = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    print(f"{len(numbers)} cases, seed {given.seed}: exit codes {counts}; {finds} went wrong")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
