"""A small problem and all its answers, from the paper's equations, in float64 loops: ``arrays.npz``.

    python tests/faithfulness/make_arrays.py          # writes arrays.npz beside this file

Nothing of the package is imported, and numpy holds numbers only: every sum below is a loop. Equation numbers are those
of Huang, Dong, Gong, Zhu, ICML 2019. The problem is made hard on purpose, and ``check_problem`` says that it stayed so:

- rows 3, 10 and 41 are the same vector: a sample's own row must be left out by its id, ties go to the smaller id, and
  the three straddle the border between anchors and instances in round 1 of R = 4;
- rows 31 and 52 are equally similar to row 20 but for a step of float32: the larger id is the nearer one, and sums in
  float32 do not tell;
- N = 61 is divisible by neither R = 4 nor R = 3;
- the two batches of a round follow each other, and the second one sees rows that the first one moved;
- eta is not the published 0.5, at which old and new row have the same share.

The inputs are float32 numbers held as float64, so the package gets the very same ones.
"""

import math
from pathlib import Path

import numpy as np

ARRAYS = Path(__file__).with_name("arrays.npz")

SEED = 130
NUM_SAMPLES, DIM, NUM_NEIGHBOURS, NUM_CLASSES = 61, 8, 3, 4
NUM_QUERIES, BATCH = 25, 12
DUPLICATES = (3, 10, 41)
NEAR_TIE = (20, 31, 52)
TEMPERATURES = (0.1, 0.015, 0.005)
LOSS_TEMPERATURES = TEMPERATURES[:2]
CURRICULA = (4, 3)
ROUND, NUM_ROUNDS = 2, 4
"""Round of the two batches."""
ETA = 0.3
VOTERS = (1, 5, 20)
VOTE_TEMPERATURES = (0.07, 1.0)
INPUTS = ("memory", "labels", "queries", "query_labels", "batch_ids", "batch_features")


class Numbers:
    """Pseudorandom numbers from integers alone, so that no library's generator is needed to make the inputs again."""

    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 11) / 2**53

    def bell(self):
        """Nearly normal: the sum of twelve uniform numbers, less six."""
        return sum(self.uniform() for _ in range(12)) - 6.0

    def vector(self):
        return [self.bell() for _ in range(DIM)]

    def shuffled(self, n):
        keys = [(self.uniform(), i) for i in range(n)]
        return [i for _, i in sorted(keys)]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(v):
    length = math.sqrt(dot(v, v))
    return [x / length for x in v]


def to_float32(v):
    return [float(np.float32(x)) for x in v]


# the inputs


def make_inputs():
    """Names of ``INPUTS`` -> arrays."""
    numbers = Numbers(SEED)
    centres = [unit(numbers.vector()) for _ in range(NUM_CLASSES)]

    def near(centre, spread):
        return to_float32(unit([c + spread * x for c, x in zip(centre, numbers.vector(), strict=True)]))

    labels = [i % NUM_CLASSES for i in range(NUM_SAMPLES)]
    memory = [near(centres[c], 0.35) for c in labels]
    for i in DUPLICATES[1:]:
        memory[i] = memory[DUPLICATES[0]]
    for c, i in enumerate(DUPLICATES):
        labels[i] = c
    _make_near_tie(memory, numbers)
    query_labels = [i % NUM_CLASSES for i in range(NUM_QUERIES)]
    queries = [near(centres[c], 0.35) for c in query_labels]
    queries[0] = near(memory[DUPLICATES[0]], 0.02)
    order = numbers.shuffled(NUM_SAMPLES)
    batch_ids = [order[:BATCH], order[BATCH : 2 * BATCH]]
    batch_features = [[near(memory[i], 0.15) for i in ids] for ids in batch_ids]
    found = (memory, labels, queries, query_labels, batch_ids, batch_features)
    return {name: np.array(values) for name, values in zip(INPUTS, found, strict=True)}


def _make_near_tie(memory, numbers):
    """Two rows in different directions from a third, one a step of float32 nearer, which a float32 sum does not see."""
    middle, farther, nearer = (memory[i] for i in NEAR_TIE)
    for _ in range(10_000):
        for row in (farther, nearer):
            side = numbers.vector()
            along = dot(side, middle)
            side = unit([x - along * m for x, m in zip(side, middle, strict=True)])
            row[:] = to_float32(unit([m + 0.2 * x for m, x in zip(middle, side, strict=True)]))
        if is_hidden_tie(middle, farther, nearer):
            return
    raise AssertionError("no near tie was found")


def is_hidden_tie(middle, farther, nearer):
    """Whether the nearer row is so after one rounding of the exact product, but not by sums in float32."""
    once = [np.float32(dot(middle, row)) for row in (farther, nearer)]
    summed = []
    for row in (farther, nearer):
        total = np.float32(0)
        for x, y in zip(middle, row, strict=True):
            total += np.float32(x) * np.float32(y)
        summed.append(total)
    return once[1] > once[0] and summed[1] <= summed[0]


# the equations


def probabilities(x, memory, temperature):
    """p_ij for one feature x_i and every row of the memory, as in eq 2."""
    exponents = [dot(x, m) / temperature for m in memory]
    highest = max(exponents)
    weights = [math.exp(e - highest) for e in exponents]
    total = math.fsum(weights)
    return [w / total for w in weights]


def nearest(x, rows, count, left_out=None):
    """Eq 1: ids and similarities of the most similar rows; of equal ones the smaller id."""
    ranked = sorted((-dot(x, row), j) for j, row in enumerate(rows) if j != left_out)[:count]
    return [j for _, j in ranked], [-s for s, _ in ranked]


def entropy(p):
    """Eq 5, over all rows, the sample's own among them; 0 log 0 is 0."""
    return -math.fsum(q * math.log(q) for q in p if q > 0)


def select(entropies, round_number, num_rounds):
    """Eq 6: the floor(N r / R) samples of lowest entropy; of equal ones the smaller id."""
    order = sorted(range(len(entropies)), key=lambda i: (entropies[i], i))
    chosen = order[: len(entropies) * round_number // num_rounds]
    return [i in chosen for i in range(len(entropies))]


def loss(x, members, memory, temperature):
    """Eq 7, and eq 2 where the sample is its only member."""
    p = probabilities(x, memory, temperature)
    return -math.log(math.fsum(p[j] for j in members))


def loss_gradient(x, members, memory, temperature):
    """By the chain rule (sum_j p_ij m_j - sum_{j in S} p_ij m_j / sum_{j in S} p_ij) / tau."""
    p = probabilities(x, memory, temperature)
    inside = math.fsum(p[j] for j in members)
    gradient = []
    for d in range(len(x)):
        over_all = math.fsum(q * m[d] for q, m in zip(p, memory, strict=True))
        over_members = math.fsum(p[j] * memory[j][d] for j in members) / inside
        gradient.append((over_all - over_members) / temperature)
    return gradient


def difference_gradient(x, members, memory, temperature, h=1e-6):
    """The same from the loss alone, by central differences."""
    gradient = []
    for d in range(len(x)):
        up, down = list(x), list(x)
        up[d] += h
        down[d] -= h
        rise = loss(up, members, memory, temperature) - loss(down, members, memory, temperature)
        gradient.append(rise / (2 * h))
    return gradient


def updated(memory, ids, features, eta):
    """Eq 8, and back to unit length."""
    rows = [list(m) for m in memory]
    for i, x in zip(ids, features, strict=True):
        rows[i] = unit([(1 - eta) * m + eta * v for m, v in zip(memory[i], x, strict=True)])
    return rows


def votes(query, memory, labels, num_voters, temperature):
    """Weighted kNN: each class's sum of exp(s / temperature) over the nearest training samples."""
    ids, similarities = nearest(query, memory, num_voters)
    found = [0.0] * NUM_CLASSES
    for j, s in zip(ids, similarities, strict=True):
        found[labels[j]] += math.exp(s / temperature)
    return found


# the answers


def expected(inputs):
    """Names -> arrays of everything that the equations say of the inputs."""
    values = {name: inputs[name].tolist() for name in INPUTS}
    return _neighbourhoods(values) | _training(values) | _classification(values)


def _neighbourhoods(values):
    memory = values["memory"]
    found = [nearest(x, memory, NUM_NEIGHBOURS, left_out=i) for i, x in enumerate(memory)]
    entropies = [[entropy(probabilities(x, memory, t)) for x in memory] for t in TEMPERATURES]
    answers = {
        "neighbour_ids": [ids for ids, _ in found],
        "similarities": [similarities for _, similarities in found],
        "entropies": entropies,
    }
    for num_rounds in CURRICULA:
        answers[f"anchors_of_{num_rounds}"] = [select(entropies[0], r, num_rounds) for r in range(num_rounds + 1)]
    return {name: np.array(rows) for name, rows in answers.items()}


def _training(values):
    """Two batches, one after the other; index 0 of ``mean_losses`` and ``gradients`` is eq 2, index 1 eq 7."""
    memory = values["memory"]
    entropies = [entropy(probabilities(x, memory, TEMPERATURES[0])) for x in memory]
    is_anchor = select(entropies, ROUND, NUM_ROUNDS)
    neighbours = [nearest(x, memory, NUM_NEIGHBOURS, left_out=i)[0] for i, x in enumerate(memory)]
    means, gradients, memories = [], [], []
    for ids, features in zip(values["batch_ids"], values["batch_features"], strict=True):
        alone = [[i] for i in ids]
        together = [[i, *neighbours[i]] if is_anchor[i] else [i] for i in ids]
        per_temperature = [[_batch(features, m, memory, t) for m in (alone, together)] for t in LOSS_TEMPERATURES]
        means.append([[mean for mean, _ in kinds] for kinds in per_temperature])
        gradients.append([[gradient for _, gradient in kinds] for kinds in per_temperature])
        memory = updated(memory, ids, features, ETA)
        memories.append(memory)
    return {
        "mean_losses": np.array(means),  # (batches, temperatures, kinds)
        "gradients": np.array(gradients),  # (batches, temperatures, kinds, B, D), of the mean, by the features
        "memories_after": np.array(memories),  # (batches, N, D)
    }


def _batch(features, members, memory, temperature):
    """Mean loss of a batch and its gradient by each feature, which is checked against central differences."""
    losses = [loss(x, m, memory, temperature) for x, m in zip(features, members, strict=True)]
    gradient = []
    for x, m in zip(features, members, strict=True):
        exact = loss_gradient(x, m, memory, temperature)
        for a, b in zip(exact, difference_gradient(x, m, memory, temperature), strict=True):
            assert abs(a - b) < 1e-7 / temperature, f"{a} by the chain rule, {b} by differences"
        gradient.append([g / len(features) for g in exact])
    return math.fsum(losses) / len(losses), gradient


def _classification(values):
    answers = {"votes": [], "classes": [], "accuracies": []}
    for t in VOTE_TEMPERATURES:
        for k in VOTERS:
            found = [votes(q, values["memory"], values["labels"], k, t) for q in values["queries"]]
            ranked = [_ranked(row) for row in found]
            right = [row[0] == label for row, label in zip(ranked, values["query_labels"], strict=True)]
            answers["votes"].append(found)
            answers["classes"].append(ranked)
            answers["accuracies"].append(sum(right) / len(right))
    shape = (len(VOTE_TEMPERATURES), len(VOTERS))
    return {name: np.array(rows).reshape(*shape, *np.shape(rows)[1:]) for name, rows in answers.items()}


def _ranked(row):
    """Classes by their votes, most first; -1 where no class has one."""
    order = sorted((-v, c) for c, v in enumerate(row) if v > 0)
    return [c for _, c in order] + [-1] * (NUM_CLASSES - len(order))


# what makes it hard, and unambiguous


def check_problem(inputs, answers):
    """The problem is as hard as the top of this file says, and no answer hangs on the last bits of a float32."""
    memory, queries = inputs["memory"].tolist(), inputs["queries"].tolist()
    middle, farther, nearer = NEAR_TIE
    assert answers["neighbour_ids"][middle][:2].tolist() == [nearer, farther]
    assert is_hidden_tie(*(memory[i] for i in NEAR_TIE))
    searches = [(x, NUM_NEIGHBOURS, i) for i, x in enumerate(memory)] + [(q, max(VOTERS), None) for q in queries]
    for x, k, own in searches:
        _, similarities = nearest(x, memory, k + 1, left_out=own)
        gaps = -np.diff(similarities)[own == middle :]  # the first gap of the middle row is the near tie
        assert all(gap == 0 or gap > 1e-6 for gap in gaps)
    order = sorted((h, i) for i, h in enumerate(answers["entropies"][0]))
    for num_rounds in CURRICULA:
        for r in range(1, num_rounds):
            count = NUM_SAMPLES * r // num_rounds
            (low, last), (high, first) = order[count - 1 : count + 1]
            assert {last, first} <= set(DUPLICATES) or high - low > 1e-3
            assert NUM_SAMPLES * r % num_rounds
    assert 0 < answers["anchors_of_4"][1][list(DUPLICATES)].sum() < len(DUPLICATES)
    is_anchor = answers[f"anchors_of_{NUM_ROUNDS}"][ROUND]
    first, second = inputs["batch_ids"]
    assert all(0 < is_anchor[ids].sum() < BATCH for ids in (first, second))
    assert set(answers["neighbour_ids"][second[is_anchor[second]]].ravel()) & set(first)
    ranked = -np.sort(-answers["votes"], axis=-1)
    before, behind = ranked[..., :-1], ranked[..., 1:]
    assert ((behind == before) | (behind < (1 - 1e-5) * before)).all()
    assert len(set(answers["accuracies"].ravel())) > 1


def main():
    inputs = make_inputs()
    answers = expected(inputs)
    check_problem(inputs, answers)
    np.savez_compressed(ARRAYS, **inputs, **answers)
    print(f"{ARRAYS}: {ARRAYS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
