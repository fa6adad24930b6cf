"""Mutation testing: single changes of a module, each of which its tests should notice.

    pip install -e '.[dev,mutation]'
    python -m bench.mutation [--only search/knapsack.py] [--each 1] [--most 100] [--seed 0]

The mutants are those of Cosmic Ray (github.com/sixty-north/cosmic-ray) but for those of annotations. It
replaces an operator by any of a dozen: of a place and a kind of change at most --each mutants are tried, and
of a module at most --most, drawn by --seed. In a copy of the tree, the module's tests run until one fails,
with few examples of hypothesis. A mutant that takes many times the CPU seconds of the original, or much
memory, is noticed as well. bench/mutation_reasons.toml says of what survives why it may, by the line as it is
changed, and leaves lines out by the line as it is. Without a reason for a survivor the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.provenance import RESULTS, ROOT, markdown, provenance, write

_EXACT = "layers/test_rewrite_exact.py::test_"
TARGETS = {
    "search/knapsack.py": ("search/test_knapsack_parts.py", "search/test_knapsack.py"),
    "layers/lower.py": (
        "layers/test_lower.py",
        *(f"{_EXACT}{name}" for name in ("convolution[tucker]", "transposed_convolution[tt]", "gemm[btt]")),
    ),
    "fitting/quadratic_loss.py": ("fitting/test_quadratic_loss.py",),
}
"""Modules of onnxdecomp/, and the files of tests/ that hold them."""

SLOW_IMPORTS = ("pytest", "hypothesis.strategies", "scipy.linalg", "scipy.optimize", "tensorly", "onnxscript")
"""Imported once, by the process that the tests are forked from."""

REASONS = Path(__file__).with_name("mutation_reasons.toml")

_MEMORY = 3 << 30
"""Bytes that a test run may allocate."""


@dataclass(frozen=True)
class Mutant:
    """A change: the line's number from 1, the line before and after, and the module's whole source."""

    number: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class Change:
    """What Cosmic Ray makes a mutant from: (line, column), the operator and which of its places it is."""

    place: tuple[int, int]
    operator: str
    occurrence: int


def drawn(changes: list[Change], each: int, seed: int) -> list[Change]:
    """Those to try, in the order of the source."""
    groups = defaultdict(list)
    for change in changes:
        groups[change.place, change.operator.partition("_")[0]].append(change)
    chosen = random.Random(seed)
    return [one for _, some in sorted(groups.items()) for one in chosen.sample(some, min(each, len(some)))]


def made(source: str, change: Change) -> Mutant:
    """The module with that change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(source, get_operator(change.operator)(), change.occurrence)
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    number, (before, after) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return Mutant(number, before.strip(), after.strip(), changed)


def possible(source: str) -> Iterator[Change]:
    """All but those of annotations, which nothing reads while the product runs."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    annotations = [
        ((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset))
        for node in ast.walk(ast.parse(source))
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
    ]
    tree = get_ast(source)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():  # kinds that have to be told what to change
            continue
        places = (start for node in ast_nodes(tree) for start, _ in kind().mutation_positions(node))
        for occurrence, place in enumerate(places):
            if not any(first <= place < last for first, last in annotations):
                yield Change(place, name, occurrence)


def passes(copy: Path, tests: tuple[str, ...], cpu_s: float | None = None) -> bool:
    """Whether the tests pass in a process of its own, with a limit if it is of a mutant."""
    child = multiprocessing.get_context("fork").Process(target=_test, args=(copy, tests, cpu_s))
    child.start()
    child.join()
    return child.exitcode == 0


def _test(copy: Path, tests: tuple[str, ...], cpu_s: float | None) -> None:
    import pytest

    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "passes")]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("onnxdecomp", "bench")]:
        del sys.modules[name]
    if cpu_s is not None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.dont_write_bytecode = True  # of a mutant; of the rest there is some
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 2))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    options = ("-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=")
    sys.exit(pytest.main([*options, *(f"tests/{test}" for test in tests)]))


def survivors(copy: Path, module: str, tries: list[Change]) -> list[Mutant]:
    """Those that no test of the module notices."""
    file, tests = copy / "onnxdecomp" / module, TARGETS[module]
    original, before = file.read_text(), _cpu_s()
    if not passes(copy, tests):
        raise SystemExit(f"{module}: its tests fail without a change")
    limit = 10 + 5 * (_cpu_s() - before)
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
    result = []
    for at, mutant in enumerate((made(original, change) for change in tries), 1):
        file.write_text(mutant.source)
        if passes(copy, tests, limit):
            result.append(mutant)
            where = f"{at} of {len(tries)}, {module}:{mutant.number}"
            print(where, mutant.before, mutant.after, sep="\n  ", flush=True)
    file.write_text(original)
    return result


def _cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def measured(copy: Path, module: str, each: int, most: int | None, seed: int) -> dict[str, Any]:
    """The row of a module."""
    source = (copy / "onnxdecomp" / module).read_text()
    lines, reasons = (
        [line.strip() for line in source.splitlines()],
        tomllib.loads(REASONS.read_text())[module],
    )
    changes = list(possible(source))
    tries = [one for one in drawn(changes, each, seed) if lines[one.place[0] - 1] not in reasons]
    if most is not None and most < len(tries):
        tries = [tries[at] for at in sorted(random.Random(seed).sample(range(len(tries)), most))]
    before = _cpu_s()
    left = survivors(copy, module, tries)
    return {
        **provenance(),
        "cosmic-ray": version("cosmic-ray"),
        "tests": TARGETS[module],
        "mutants": len(changes),
        "tried": len(tries),
        "cpu_s": round(_cpu_s() - before),
        "survivors": [
            {"line": one.before, "changed": one.after, "reason": reasons.get(one.after)} for one in left
        ],
        "left_out": {line: reasons[line] for line in lines if line in reasons},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The modules, and below them the survivors."""
    head = ("module", "date", "Cosmic Ray", "mutants", "tried", "noticed", "survived", "CPU s")
    counts = [
        (
            f"`{module}`",
            row["date"],
            row["cosmic-ray"],
            str(row["mutants"]),
            str(row["tried"]),
            str(row["tried"] - len(row["survivors"])),
            str(len(row["survivors"])),
            str(row["cpu_s"]),
        )
        for module, row in rows.items()
    ]
    left = [
        f"- `{module}`: `{one['changed']}`: {one['reason'] or '**not explained**'}"
        for module, row in rows.items()
        for one in row["survivors"]
    ]
    out = [
        f"- `{module}`: `{line}`: {reason}"
        for module, row in rows.items()
        for line, reason in row["left_out"].items()
    ]
    parts = [markdown(head, counts), "What survived:", "\n".join(left), "Lines left out:", "\n".join(out)]
    return "\n\n".join(parts)


def main() -> None:
    """Test the modules' mutants, and write bench/results/mutation.json and .md; other modules' rows stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--each", type=int, default=1, help="mutants of one place and kind of change")
    parser.add_argument("--most", type=int, help="mutants of a module; without it all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "few"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    file = RESULTS / "mutation.json"
    rows = json.loads(file.read_text()) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for module in options.only:
            rows[module] = measured(copy, module, options.each, options.most, options.seed)
    rows = {module: rows[module] for module in TARGETS if module in rows}
    write("mutation", rows, table(rows))
    if any(one["reason"] is None for module in options.only for one in rows[module]["survivors"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
