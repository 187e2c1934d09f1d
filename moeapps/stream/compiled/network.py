"""The router's network in arrays: forward, backward and Adam in compiled code, for one instance or for a batch.

It is the MLP of the DriftMoE paper, R -> H1 -> H2 -> E with ReLU, dropout after the first layer in training,
Xavier-uniform weights, binary cross-entropy with logits and Adam. :class:`~moeapps.stream.router.StreamRouter` is the
same in torch: the reference that it is tested against, and the way out of this format. Written by hand because one
instance at a time is too little work for a framework: the overhead of a torch call is larger than the whole step.
"""

# R inputs, H1 and H2 hidden units, E outputs, P parameters, B rows of a batch

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import kernel, uniform
from moeapps.stream.compiled.references import referable

__all__ = [
    "Network",
    "add_inputs",
    "forward",
    "layers_of",
    "make_room",
    "new_network",
    "resize",
    "train_batch",
    "train_one",
]

Float = NDArray[np.float32]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

_LEAST = np.float32(1e-35)
"""Means of Adam below this are zero; their steps are far below what changes a parameter."""


@referable
class Network(NamedTuple):
    """All parameters in one vector, so that Adam is one loop: W1 (R, H1), b1 (H1,), W2 (H1, H2), b2, W3 (H2, E), b3."""

    parameters: Float  # (P,)
    first: Float  # (P,) moments of Adam
    second: Float  # (P,)
    sizes: NDArray[np.int64]  # R, H1, H2, E
    steps: NDArray[np.int64]  # (1,) steps of Adam so far


def new_network(inputs: int, hidden: tuple[int, int], outputs: int, rng: np.random.Generator) -> Network:
    """Xavier-uniform weights, zero biases (Glorot and Bengio 2010)."""
    sizes = np.array([inputs, *hidden, outputs], dtype=np.int64)
    number = sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes.tolist()))
    p, m, v = (np.zeros(number, dtype=np.float32) for _ in range(3))
    network = Network(p, m, v, sizes, np.zeros(1, dtype=np.int64))
    for weight in layers_of(network.parameters, sizes)[::2]:
        limit = np.sqrt(6.0 / sum(weight.shape))
        weight[...] = rng.uniform(-limit, limit, weight.shape)
    return network


def resize(old: Network, inputs: int, outputs: int, rng: np.random.Generator) -> Network:
    """The same network for more inputs and outputs: new rows and columns are drawn, the rest stays as it is."""
    new = new_network(inputs, (int(old.sizes[1]), int(old.sizes[2])), outputs, rng)
    for name in ("parameters", "first", "second"):
        for target, source in zip(
            layers_of(getattr(new, name), new.sizes), layers_of(getattr(old, name), old.sizes), strict=True
        ):
            target[tuple(slice(size) for size in source.shape)] = source
    new.steps[:] = old.steps
    return new


def add_inputs(old: Network, number: int, bits: Callable[[int], np.random.PCG64]) -> Network:
    """The same network for more inputs, as if :func:`resize` had added them one after the other.

    Parameters
    ----------
    old : Network
        The network.
    number : int
        How many inputs are added.
    bits : callable
        The bit generator that :func:`resize` would have drawn the i-th of them from, i from 1.
    """
    r, h1, h2, e = (int(size) for size in old.sizes)
    sizes = np.array([r + number, h1, h2, e], dtype=np.int64)
    p, m, v = (np.concatenate([f[: r * h1], np.zeros(number * h1, np.float32), f[r * h1 :]]) for f in old[:3])
    rows = layers_of(p, sizes)[0]
    for i in range(1, number + 1):
        generator = bits(i).advance((r + i - 1) * h1)  # behind the rows of the inputs before it
        limit = np.sqrt(6.0 / (r + i + h1))
        rows[r + i - 1] = np.random.Generator(generator).uniform(-limit, limit, h1)
    return Network(p, m, v, sizes, old.steps.copy())


@kernel
def layers_of(flat, sizes):  # type: ignore[no-untyped-def]
    """Views of a vector of parameters: W1, b1, W2, b2, W3, b3, weights as ``(in, out)``."""
    r, h1, h2, e = sizes[0], sizes[1], sizes[2], sizes[3]
    a = r * h1
    b = a + h1
    c = b + h1 * h2
    d = c + h2
    f = d + h2 * e
    return (
        flat[:a].reshape((r, h1)),
        flat[a:b],
        flat[b:c].reshape((h1, h2)),
        flat[c:d],
        flat[d:f].reshape((h2, e)),
        flat[f : f + e],
    )


@kernel
def make_room(net):  # type: ignore[no-untyped-def]
    """Buffers: both hidden layers, the indices of units that are not zero, and a gradient."""
    sizes = net.sizes
    h1, h2 = np.empty(sizes[1], dtype=np.float32), np.empty(sizes[2], dtype=np.float32)
    return h1, h2, np.empty(max(sizes[0], sizes[1], sizes[2], sizes[3]), dtype=np.int64), np.empty_like(net.parameters)


@kernel
def _layer(x, w, b, active, out, relu):  # type: ignore[no-untyped-def]
    """One row through a layer. The order of the additions is fixed, so equal inputs give equal bits."""
    n = out.shape[0]
    for j in range(n):
        out[j] = b[j]
    count = 0
    for i in range(x.shape[0]):
        if x[i] != 0.0:  # about half of the units after a ReLU are zero
            active[count] = i
            count += 1
    k = 0
    while k + 4 <= count:  # four rows at a time: out[j] is read and written a quarter as often
        i0, i1, i2, i3 = active[k], active[k + 1], active[k + 2], active[k + 3]
        v0, v1, v2, v3 = x[i0], x[i1], x[i2], x[i3]
        r0, r1, r2, r3 = w[i0], w[i1], w[i2], w[i3]
        for j in range(n):
            out[j] += (v0 * r0[j] + v1 * r1[j]) + (v2 * r2[j] + v3 * r3[j])
        k += 4
    while k < count:
        v0, r0 = x[active[k]], w[active[k]]
        for j in range(n):
            out[j] += v0 * r0[j]
        k += 1
    if relu:
        for j in range(n):
            out[j] = max(out[j], np.float32(0.0))


@kernel
def forward(net, x, room, logits):  # type: ignore[no-untyped-def]
    """Logits of one instance, in evaluation mode; ``room`` is what :func:`make_room` gave."""
    h1, h2, active, _ = room
    w1, b1, w2, b2, w3, b3 = layers_of(net.parameters, net.sizes)
    _layer(x, w1, b1, active, h1, True)
    _layer(h1, w2, b2, active, h2, True)
    _layer(h2, w3, b3, active, logits, False)


@kernel
def _adam(net, gradient, lr):  # type: ignore[no-untyped-def]
    net.steps[0] += 1
    t = net.steps[0]
    rate, correction = np.float32(lr / (1.0 - BETA_1**t)), np.float32(1.0 / (1.0 - BETA_2**t))
    one, two, eps = np.float32(BETA_1), np.float32(BETA_2), np.float32(EPSILON)
    new_one, new_two, zero = np.float32(1.0 - BETA_1), np.float32(1.0 - BETA_2), np.float32(0.0)
    p, m, v = net.parameters, net.first, net.second
    for i in range(p.shape[0]):
        # means of gradients that stay zero would end as subnormal numbers, with which processors are many times slower
        mean, square = one * m[i] + new_one * gradient[i], two * v[i] + new_two * gradient[i] * gradient[i]
        m[i] = mean if abs(mean) > _LEAST else zero
        v[i] = square if square > _LEAST else zero
        p[i] -= rate * m[i] / (np.sqrt(v[i] * correction) + eps)


@kernel
def _gap(logit, target, scale):  # type: ignore[no-untyped-def]
    """Gradient of the mean binary cross-entropy by a logit."""
    return (np.float32(1.0) / (np.float32(1.0) + np.exp(-logit)) - target) * scale


@kernel
def _add_bias(values, bias, relu):  # type: ignore[no-untyped-def]
    """Add the bias to every row; ReLU."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            value = values[i, j] + bias[j]
            values[i, j] = max(value, np.float32(0.0)) if relu else value


@kernel
def _weight_gradient(rows, gaps, weight, bias):  # type: ignore[no-untyped-def]
    """Gradients of a layer's weight, rows^T gaps, and of its bias, the sum of the gaps."""
    np.dot(np.ascontiguousarray(rows.T), gaps, weight)
    bias[:] = np.float32(0.0)
    for i in range(gaps.shape[0]):
        for j in range(gaps.shape[1]):
            bias[j] += gaps[i, j]


@kernel
def _gaps_before(gaps, weight, hidden, scale):  # type: ignore[no-untyped-def]
    """Gradient by the units of a ReLU layer: gaps W' where a unit is on."""
    before = np.dot(gaps, np.ascontiguousarray(weight.T))
    for i in range(hidden.shape[0]):
        for j in range(hidden.shape[1]):
            before[i, j] = before[i, j] * scale if hidden[i, j] > 0.0 else np.float32(0.0)
    return before


@kernel
def train_batch(net, x, target, dropout, lr, rng):  # type: ignore[no-untyped-def]
    """One Adam step on the mean binary cross-entropy of a batch ``(B, R)`` with targets ``(B, E)``."""
    w1, b1, w2, b2, w3, b3 = layers_of(net.parameters, net.sizes)
    gradient = np.empty_like(net.parameters)
    g1, gb1, g2, gb2, g3, gb3 = layers_of(gradient, net.sizes)
    scale = np.float32(1.0 / (1.0 - dropout))
    h1 = np.dot(x, w1)
    _add_bias(h1, b1, True)
    if dropout > 0.0:
        for i in range(h1.shape[0]):
            for j in range(h1.shape[1]):
                h1[i, j] = np.float32(0.0) if uniform(rng) < dropout else h1[i, j] * scale
    h2 = np.dot(h1, w2)
    _add_bias(h2, b2, True)
    d3 = np.dot(h2, w3)
    _add_bias(d3, b3, False)
    share = np.float32(1.0 / target.size)
    for i in range(d3.shape[0]):
        for j in range(d3.shape[1]):
            d3[i, j] = _gap(d3[i, j], target[i, j], share)
    d2 = _gaps_before(d3, w3, h2, np.float32(1.0))
    d1 = _gaps_before(d2, w2, h1, scale)
    _weight_gradient(x, d1, g1, gb1)
    _weight_gradient(h1, d2, g2, gb2)
    _weight_gradient(h2, d3, g3, gb3)
    _adam(net, gradient, lr)


@kernel
def _outer(left, right, out):  # type: ignore[no-untyped-def]
    for i in range(left.shape[0]):
        row, value = out[i], left[i]
        for j in range(right.shape[0]):
            row[j] = value * right[j]


@kernel
def _back(w, gap, hidden, scale, out):  # type: ignore[no-untyped-def]
    """Gradient by the units of a ReLU layer: W gap where a unit is on.

    Four separate sums allow vector instructions. So would ``fastmath``, but then the last bits depend on what the
    compiler inlines where, and a process that loads the machine code from disk would not continue bit for bit as the
    one that compiled it.
    """
    n, zero = gap.shape[0], np.float32(0.0)
    for i in range(hidden.shape[0]):
        a = b = c = d = zero
        if hidden[i] > 0.0:
            row, j = w[i], 0
            while j + 4 <= n:
                a += row[j] * gap[j]
                b += row[j + 1] * gap[j + 1]
                c += row[j + 2] * gap[j + 2]
                d += row[j + 3] * gap[j + 3]
                j += 4
            while j < n:
                a += row[j] * gap[j]
                j += 1
        out[i] = ((a + b) + (c + d)) * scale


@kernel
def train_one(net, x, target, dropout, lr, room, rng):  # type: ignore[no-untyped-def]
    """:func:`train_batch` for a batch of one, ``(R,)`` and ``(E,)``."""
    h1, h2, active, gradient = room
    w1, b1, w2, b2, w3, b3 = layers_of(net.parameters, net.sizes)
    g1, d1, g2, d2, g3, d3 = layers_of(gradient, net.sizes)  # of a bias the gradient is that of its unit
    _layer(x, w1, b1, active, h1, True)
    scale = np.float32(1.0 / (1.0 - dropout))
    if dropout > 0.0:
        for j in range(h1.shape[0]):
            h1[j] = np.float32(0.0) if uniform(rng) < dropout else h1[j] * scale
    _layer(h1, w2, b2, active, h2, True)
    _layer(h2, w3, b3, active, d3, False)
    share = np.float32(1.0 / target.size)
    for j in range(d3.shape[0]):
        d3[j] = _gap(d3[j], target[j], share)
    _back(w3, d3, h2, np.float32(1.0), d2)
    _back(w2, d2, h1, scale, d1)
    _outer(x, d1, g1)
    _outer(h1, d2, g2)
    _outer(h2, d3, g3)
    _adam(net, gradient, lr)
