"""Recurrent layers, unrolled over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]
"""From what the input contributes to the gates [N, gates * H] and the state, the next state."""

_ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "hardsigmoid": lambda x, a=0.2, b=0.5: torch.clamp(a * x + b, 0, 1),
    "leakyrelu": lambda x, a=0.01: functional.leaky_relu(x, a),
    "affine": lambda x, a=1.0, b=0.0: a * x + b,
    "elu": lambda x, a=1.0: functional.elu(x, a),
    "softsign": functional.softsign,
    "softplus": functional.softplus,
    "scaledtanh": lambda x, a=1.0, b=1.0: a * torch.tanh(b * x),
    "thresholdedrelu": lambda x, a=1.0: torch.where(x > a, x, torch.zeros_like(x)),
}
_TAKES = {"hardsigmoid": 2, "affine": 2, "scaledtanh": 2, "leakyrelu": 1, "elu": 1, "thresholdedrelu": 1}


def _activations(call: Call, defaults: Sequence[str], direction: int) -> list[Activation]:
    """Those of one direction, with their parameters."""
    directions = 2 if call.attribute("direction", "forward") == "bidirectional" else 1
    names = [name.lower() for name in call.attribute("activations", list(defaults) * directions)]
    alphas = list(call.attribute("activation_alpha", []))
    betas = list(call.attribute("activation_beta", []))
    found: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise call.refuse(f"its activation is {name}")
        takes = _TAKES.get(name, 0)
        given = [alphas.pop(0)] if takes and alphas else []
        given += [betas.pop(0)] if takes == 2 and betas else []
        bound = partial(_ACTIVATIONS[name], **dict(zip("ab", given, strict=False)))
        found.append(bound if given else _ACTIVATIONS[name])
    each = len(defaults)
    return found[direction * each : (direction + 1) * each]


def _unroll(
    call: Call,
    states: Sequence[int],
    step: Callable[[int], tuple[Tensor, Step]],
) -> tuple[Tensor | None, ...]:
    """Run every direction over time.

    Args:
        call: The layer: X, W [directions, gates H, I], R, B, sequence_lens, then the states' beginnings.
        states: The inputs that hold the states' beginnings.
        step: For a direction the bias of its inputs' part [gates H], and what makes one step.
    """
    batch_first = call.attribute("layout", 0) == 1
    x = call.x.transpose(0, 1) if batch_first else call.x
    length, batch, _ = x.shape
    W, lengths, hidden = call[1], call.get(4), call[2].shape[-1]
    names = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    outputs, ends = [], []
    for direction, backwards in enumerate(names[call.attribute("direction", "forward")]):
        bias, advance = step(direction)
        gates = functional.linear(x, W[direction], bias)
        state = tuple(_initial(call, index, direction, (batch, hidden), batch_first, x) for index in states)
        seen: list[Tensor] = [x] * length
        for t in reversed(range(length)) if backwards else range(length):
            following = advance(gates[t], state)
            if lengths is not None:
                running = (t < lengths.to(x.device)).reshape(-1, 1)
                kept = zip(following, state, strict=True)
                following = tuple(torch.where(running, new, old) for new, old in kept)
                seen[t] = torch.where(running, following[0], torch.zeros_like(following[0]))
            else:
                seen[t] = following[0]
            state = following
        outputs.append(torch.stack(seen) if seen else x.new_zeros(0, batch, hidden))
        ends.append(state)
    y = torch.stack(outputs, 1)
    last = tuple(torch.stack([end[index] for end in ends]) for index in range(len(states)))
    if batch_first:
        return y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in last)
    return y, *last


def _initial(
    call: Call, index: int, direction: int, shape: tuple[int, int], batch_first: bool, like: Tensor
) -> Tensor:
    given = call.get(index)
    if given is None:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    return given[:, direction] if batch_first else given[direction]


def _biases(call: Call, direction: int, size: int) -> tuple[Tensor, Tensor]:
    """Those of the inputs' and of the states' products."""
    given = call.get(3)
    if given is None:
        zero = torch.zeros(size, dtype=call.x.dtype, device=call.x.device)
        return zero, zero
    return given[direction, :size], given[direction, size:]


def _lstm(call: Call) -> tuple[Tensor | None, ...]:
    if call.attribute("clip") is not None or call.attribute("input_forget", 0):
        raise call.refuse("it has clip or input_forget")

    def step(direction: int) -> tuple[Tensor, Step]:
        R, peepholes = call[2][direction], call.get(7)
        f, g, h = _activations(call, ("Sigmoid", "Tanh", "Tanh"), direction)
        wb, rb = _biases(call, direction, R.shape[0])
        zeros = [0.0] * 3 if peepholes is None else list(peepholes[direction].chunk(3))
        pi, po, pf = zeros

        def advance(gates: Tensor, state: State) -> State:
            hidden, cell = state
            i, o, forget, c = (gates + functional.linear(hidden, R)).chunk(4, -1)
            if peepholes is not None:
                i, forget = i + pi * cell, forget + pf * cell
            new = f(forget) * cell + f(i) * g(c)
            o = o if peepholes is None else o + po * new
            return f(o) * h(new), new

        return wb + rb, advance

    return _unroll(call, (5, 6), step)


def _gru(call: Call) -> tuple[Tensor | None, ...]:
    if call.attribute("clip") is not None:
        raise call.refuse("it has clip")

    def step(direction: int) -> tuple[Tensor, Step]:
        R = call[2][direction]
        size = R.shape[1]
        f, g = _activations(call, ("Sigmoid", "Tanh"), direction)
        wb, rb = _biases(call, direction, R.shape[0])
        # The candidate's own bias of the state's product is reset with it where that comes first.
        late = bool(call.attribute("linear_before_reset", 0))
        early = torch.cat([rb[: 2 * size], torch.zeros_like(rb[2 * size :])]) if late else rb

        def advance(gates: Tensor, state: State) -> State:
            (hidden,) = state
            update, reset = f(gates[:, : 2 * size] + functional.linear(hidden, R[: 2 * size])).chunk(2, -1)
            if late:
                inner = reset * functional.linear(hidden, R[2 * size :], rb[2 * size :])
            else:
                inner = functional.linear(reset * hidden, R[2 * size :])
            candidate = g(gates[:, 2 * size :] + inner)
            return ((1 - update) * candidate + update * hidden,)

        return wb + early, advance

    return _unroll(call, (5,), step)


def _rnn(call: Call) -> tuple[Tensor | None, ...]:
    if call.attribute("clip") is not None:
        raise call.refuse("it has clip")

    def step(direction: int) -> tuple[Tensor, Step]:
        R = call[2][direction]
        (f,) = _activations(call, ("Tanh",), direction)
        wb, rb = _biases(call, direction, R.shape[0])
        return wb + rb, lambda gates, state: (f(gates + functional.linear(state[0], R)),)

    return _unroll(call, (5,), step)


TABLE: Table = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
