"""Gates: conditions on a model's numbers, such as 'latency<=1.0 and rel_l2<=0.05'.

The grammar is that of Python's comparisons, joined by `and`, `or`, `not` and parentheses, over the names in
NAMES and numbers. Expressions are parsed by Python's own parser and walked; nothing is evaluated as code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onnxdecomp.core.options import suggest
from onnxdecomp.errors import UsageError

NAMES: Mapping[str, str] = {
    "latency": "upper end of the confidence interval of latency over the original's",
    "latency_median": "latency over the original's, ratio of the medians",
    "latency_low": "lower end of its confidence interval",
    "latency_ms": "median latency in milliseconds",
    "p99_ms": "99th percentile of the latency in milliseconds",
    "size": "bytes of the file and its external data over the original's",
    "params": "numbers stored, over the original's",
    "macs": "multiply-accumulates over the original's",
    "memory": "peak memory over the original's",
    "rel_l2": "largest relative L2 error of an output",
    "drop": "accuracy lost, as a fraction: 0.01 is one point; with --metric what that has lost",
    "metric": "what --metric says of the model",
    "metric_low": "lower end of the 95 % interval of its change, new - original",
    "metric_high": "upper end of that interval",
    "agreement": "smallest share of rows that an output puts into the original's class (integers: of values)",
}
"""What a gate can speak of, and what each name means."""

_LONGEST = 1000
"""Characters of an expression: enough for any gate, and too few to exhaust the parser."""

_COMPARISONS: Mapping[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}

Values: TypeAlias = Mapping[str, float | None]


@dataclass(frozen=True)
class Gate:
    """A condition that was parsed.

    Attributes:
        text: As it was given.
        names: What it speaks of.
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr

    def failure(self, values: Values) -> str | None:
        """Why these values do not pass: the comparisons that decided it, with their numbers; None if they do.

        Raises:
            UsageError: A value that is needed is not known.
        """
        passed, decisive = _judge(self._tree, values, wanted=True)
        return None if passed else "; ".join(dict.fromkeys(decisive))


def parse_gate(text: str) -> Gate:
    """The condition in `text`.

    Raises:
        UsageError: It is no such condition, or speaks of something unknown.
    """
    if len(text) > _LONGEST:
        raise UsageError(f"--gate: the condition has more than {_LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        names = frozenset(_check(tree))
    except SyntaxError as error:
        raise UsageError(f"--gate {text!r} is no condition: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL byte, or too many parentheses
        raise UsageError(f"--gate {text!r} is no condition: {error}") from error
    if not names:
        raise UsageError(f"--gate {text!r} speaks of nothing measured{suggest('', NAMES)}")
    return Gate(text, names, tree)


def _check(tree: ast.expr) -> list[str]:
    """The names in a condition; refuses what is none."""
    match tree:
        case ast.BoolOp(values=parts):
            return [name for part in parts for name in _check(part)]
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return _check(part)
        case ast.Compare(left=left, ops=ops, comparators=others):
            if unknown := [op for op in ops if type(op) not in _COMPARISONS]:
                raise UsageError(
                    f"--gate: a comparison is one of {' '.join(sign for sign, _ in _COMPARISONS.values())}, "
                    f"not {type(unknown[0]).__name__.lower()!r}"
                )
            return [name for side in (left, *others) for name in _check_side(side)]
    raise UsageError(f"--gate: {ast.unparse(tree)!r} is no comparison, such as 'latency<=1.0'")


def _check_side(side: ast.expr) -> list[str]:
    match side:
        case ast.Name(id=name) if name in NAMES:
            return [name]
        case ast.Name(id=name):
            raise UsageError(f"--gate: unknown name {name!r}{suggest(name, NAMES)}")
    if _number(side) is None:
        raise UsageError(f"--gate: {ast.unparse(side)!r} is neither a name nor a number")
    return []


def _number(side: ast.expr) -> float | None:
    match side:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -float(number)
    return None


def _judge(tree: ast.expr, values: Values, *, wanted: bool) -> tuple[bool, list[str]]:
    """Whether a condition holds, and the comparisons that decide it where that is not what is wanted."""
    match tree:
        case ast.UnaryOp(operand=part):
            held, why = _judge(part, values, wanted=not wanted)
            return not held, why
        case ast.BoolOp(op=kind, values=parts):
            judged = [_judge(part, values, wanted=wanted) for part in parts]
            held = (all if isinstance(kind, ast.And) else any)(passed for passed, _ in judged)
            return held, [line for passed, why in judged if passed != wanted for line in why]
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [left, *others]
            held = all(
                _COMPARISONS[type(op)][1](_value(a, values), _value(b, values))
                for a, op, b in zip(sides, ops, others, strict=False)
            )
            named = [
                f"{side.id} = {_value(side, values):.4g}" for side in sides if isinstance(side, ast.Name)
            ]
            return held, [f"{', '.join(named)} where {'' if wanted else 'not '}{ast.unparse(tree)} is wanted"]
    raise AssertionError("a condition was checked when it was parsed")


def _value(side: ast.expr, values: Values) -> float:
    if not isinstance(side, ast.Name):
        number = _number(side)
        assert number is not None
        return number
    found = values.get(side.id)
    if found is None:
        raise UsageError(f"--gate: {side.id} is not known here ({_MISSING.get(side.id, NAMES[side.id])})")
    return found


_MISSING: Mapping[str, str] = {
    "drop": "give data with labels by --data, to models whose output holds scores of classes",
    "metric": "name one by --metric",
    "metric_low": "name a metric by --metric that has an interval",
    "metric_high": "name a metric by --metric that has an interval",
    "agreement": "no output looks like scores of classes",
    "memory": "it was not measured",
    "macs": "the original has no layer with a constant weight",
    "rel_l2": "the models ran on no input",
}
