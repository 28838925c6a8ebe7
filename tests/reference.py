"""The equations of the paper as float64 loops: slow, and sharing no line with what they check.

Arguments and results are numpy arrays; shapes as in the package: N samples, D features, B batch, K neighbours.
"""

import math

import numpy as np


def similarity(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def probabilities(query, memory, temperature):
    """p_ij of eq 2 for one query over all rows."""
    logits = [similarity(query, row) / temperature for row in memory]
    highest = max(logits)
    weights = [math.exp(v - highest) for v in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def entropy(query, memory, temperature):
    """Eq 5; 0 log 0 = 0."""
    return -math.fsum(p * math.log(p) for p in probabilities(query, memory, temperature) if p > 0)


def neighbours(features, i, k):
    """Eq 1 without the sample itself: ids and similarities, larger first, then smaller id."""
    scored = [(-similarity(features[i], features[j]), j) for j in range(len(features)) if j != i]
    scored.sort()
    return [j for _, j in scored[:k]], [-s for s, _ in scored[:k]]


def anchors(entropies, r, R):
    """Eq 6: the floor(N r / R) samples of lowest entropy."""
    order = sorted(range(len(entropies)), key=lambda i: (entropies[i], i))
    chosen = set(order[: (len(entropies) * r) // R])
    return [i in chosen for i in range(len(entropies))]


def loss(feature, members, memory, temperature):
    """Eq 2 (members = the sample alone) and eq 7 (with its neighbours)."""
    p = probabilities(feature, memory, temperature)
    return -math.log(math.fsum(p[j] for j in members))


def loss_gradient(feature, members, memory, temperature, h=1e-5):
    """D loss / d feature by central differences."""
    gradient = np.zeros(len(feature))
    for d in range(len(feature)):
        up, down = np.array(feature, float), np.array(feature, float)
        up[d] += h
        down[d] -= h
        gradient[d] = (loss(up, members, memory, temperature) - loss(down, members, memory, temperature)) / (2 * h)
    return gradient


def memory_update(memory, ids, features, eta):
    """Eq 8."""
    updated = np.array(memory, float)
    for i, x in zip(ids, features, strict=True):
        row = [(1 - eta) * float(m) + eta * float(v) for m, v in zip(memory[i], x, strict=True)]
        length = math.sqrt(math.fsum(v * v for v in row))
        updated[i] = [v / length for v in row]
    return updated


def knn_classes(train, labels, query, k, temperature):
    """Classes by the sum of exp(s / temperature) among the k most similar training samples, largest first.

    Among equal similarities the smaller id votes, among equal sums the smaller class comes first.
    """
    scored = sorted(((-similarity(query, row), i) for i, row in enumerate(train)))[:k]
    votes = {}
    for negative, i in scored:
        votes.setdefault(labels[i], []).append(math.exp(-negative / temperature))
    return sorted(votes, key=lambda c: (-math.fsum(votes[c]), c))


def softmax_regression_step(weights, bias, rows, labels):
    """Mean cross-entropy of softmax(W x + b), and its gradients by W (C, F) and b (C,)."""
    loss, by_weights, by_bias = 0.0, np.zeros_like(weights), np.zeros_like(bias)
    for x, label in zip(rows, labels, strict=True):
        logits = [similarity(w, x) + float(b) for w, b in zip(weights, bias, strict=True)]
        highest = max(logits)
        total = math.fsum(math.exp(v - highest) for v in logits)
        for c, v in enumerate(logits):
            error = (math.exp(v - highest) / total - (c == label)) / len(rows)
            by_weights[c] += error * np.asarray(x, float)
            by_bias[c] += error
        loss += (math.log(total) + highest - logits[label]) / len(rows)
    return loss, by_weights, by_bias


def unit_rows(rng, n, d, clusters=0, spread=0.3):
    """Random unit vectors, float32; clustered ones are closer to what training leaves."""
    values = rng.standard_normal((n, d))
    if clusters:
        centres = rng.standard_normal((clusters, d))
        values = centres[rng.integers(0, clusters, n)] + spread * values
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
