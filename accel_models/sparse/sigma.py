"""An inner-product array as SIGMA has it: non-zero weights wait in multipliers, inputs are delivered through ports.

Letters: K filters of L = C R S weights of a group, N output pixels; d weight density, a input density; X multipliers, Y
ports, one value a cycle and port, each port feeding X / Y multipliers. A layer is a matrix K x L times one of L x N.

    round   = as many whole filters as fit X multipliers, only their non-zeros stored (found by bitmap); a filter of
              more than X is folded: X in the first round, X - 1 in each further one, beside the sum so far
    u       = values that the busiest port delivers a pixel: min(X / Y, L, multipliers in use)
    cycles  = rounds * (configure + deliver + pipeline + log2 X)
    deliver = u (N + 1)                                             weights first, then every pixel

Pixels follow one another into queues in front of the ports, one a cycle, and a port hands on one value a cycle. Zero
inputs are delivered like others (`delivers_zeros`), as the controller in STONNE does. Where they are not (two-sided
skipping) a port gets Binomial(u, a) values a pixel, and the longest of the queues of the ports counts:

    deliver = N + 1 + worst backlog of `ports`, with u - 1 weights that wait when the first pixel comes

Of a density all ports are alike, and those whose inputs are the same count once (at most L / u). Of an exact mask the
inputs of every port are looked up, with the density of their channels, in up to 32 rounds; a port shares out what
several of its multipliers want, and ports count as the share of different inputs in all that are sent. The adder tree
adds a cluster at any place, in log2 X levels.

Rounds. Of an exact mask they are counted by filling the array filter by filter. Of a density the number of filters in a
round is a renewal count: with S_j the non-zeros of j filters (mean j L d, variance j L d (1 - d)),

    filters of a round = sum over j of P(S_j <= X) =: F, at least 1;  rounds = sum over r of P(filters of r rounds < K)

by normal tails; where the count scatters by more than 2, by the renewal theorem X / m + (v - m^2 + m) / (2 m^2).
Filters beyond X add the sum over j >= 0 of P(non-zeros > X + j (X - 1)) rounds each.

Assumptions. Weights are stationary, inputs stream (the other choice is not searched). Groups are matrices of their own,
an LSTM reloads its weights in every step, a matmul is a matrix product a sample with a dense first operand. On-chip
memory holds everything and has the bandwidth of the ports; there is no DRAM. Elementwise work has no described unit:
one operation a cycle and multiplier. Energy of the networks (Benes, adder tree wires) is not counted.

Against STONNE 1.0 runs (SIGMA controller, 256 multipliers, 128 ports), with its controller's source as an oracle:
within 2.5 %. Its generator zeroes a weight if rand() % 100 <= sparsity, so "0, 80, 95 %" are densities of 0.99, 0.19
and 0.04; the last matters, since 0.05 fills a fourth round and gives a third more cycles. Against the cycle-exact
reference (`references.inner_product`): within 5 % where zeros are delivered; two-sided skipping 1 % in the mean, below
5 % of the mean over inputs (one draw of few pixels scatters by 10 %). Of a density alone, filters of fewer than 4
u weights share inputs in a port and are priced up to 20 % too slow. Filters without any weight cost nothing here; they
stall STONNE. The published SIGMA also drops weights whose inputs are zero for all pixels, which is not modelled.

Sources: Qin et al., "SIGMA: A Sparse and Irregular GEMM Accelerator with Flexible Interconnects for DNN Training", HPCA
2020; Munoz-Martinez et al., "STONNE", IISWC 2021, github stonne-simulator/stonne (SparseSDMemory).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accel_models.family import Family
from accel_models.mapping import Steps
from accel_models.placement import Placement
from accel_models.registry import family
from accel_models.sparse.eie import channel_density, group_blocks, inside_share
from accel_models.sparse.ports import Arrivals, worst_backlog
from accel_models.spec import Count, Frozen, HardwareSpec
from workloads.columns import Columns
from workloads.errors import ConfigError
from workloads.exact_sparsity import ExactSparsity

WINDOW = 6.0  # terms of a renewal sum on either side of the mean count; wider counts by the renewal theorem
WIDE = 2.0  # standard deviations of a count above which the theorem is used
FOLDS = 3.0  # the same window for the folds of one filter
TINY = 1e-9
PLAYED = 32  # rounds of a known mask whose ports are looked at one by one, evenly spaced where there are more


@family("inner_product")
class InnerProduct(Family):
    """Stationary non-zeros, streamed columns; one memory, which is the ports'."""

    class Parameters(Frozen):
        """`delivers_zeros` is 0 or 1; cycles of a round before the first and after the last delivery."""

        multipliers: Count
        ports: Count
        configure_cycles: Count
        pipeline_cycles: Count
        delivers_zeros: bool = True

    components = ("mac", "adder", "sram")
    precisions = (16,)
    pe_counts = (("multipliers", 0.12),)
    granularities = ("weight", "channel")

    def __init__(self, spec: HardwareSpec) -> None:
        numbers = spec.parameters
        if len(spec.ports) != 1:
            raise ConfigError(f"memories: {', '.join(spec.ports)}; family 'inner_product' needs one")
        if numbers.multipliers % numbers.ports or numbers.multipliers < 2:
            raise ConfigError(f"parameters.multipliers: {numbers.multipliers}, must be >= 2 and a multiple of ports")
        super().__init__(spec)

    def derived_peak(self) -> Mapping[int, float]:
        return {16: float(self.spec.parameters.multipliers)}

    def sees_input_zeros(self) -> bool:
        return True

    def map(self, rows: Columns, placement: Placement) -> Steps:
        kernels = ("weight stationary", "elementwise", "none")
        steps = Steps.empty(("round",), kernels, len(rows), 1, len(self.components))
        steps["kernel"][:] = 2
        for chosen, fill in ((rows.is_mac, self._multiply), (rows.is_vector | rows.is_move, self._move)):
            at = np.flatnonzero(chosen)
            if len(at):
                fill(steps, rows.take(at), at)
        return Steps(**steps)

    def facts(self, rows: Columns, placement: Placement) -> Mapping[str, np.ndarray]:
        """`rounds`: loads of the multipliers, of every row."""
        found = np.zeros(len(rows))
        at = np.flatnonzero(rows.is_mac)
        if len(at):
            found[at] = self._product(rows.take(at)).rounds
        return {"rounds": found}

    def channel_multiple(self) -> int:
        """Any count fills the array equally well."""
        return 1

    def _multiply(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for layers that multiply."""
        numbers, product = self.spec.parameters, self._product(rows)
        tiles = np.maximum(np.rint(product.rounds), 1.0)  # the expected rounds as whole tiles of a little more or less
        n, nonzeros = product.pixels, product.nonzeros
        density = np.where(numbers.delivers_zeros, 1.0, rows.input_density * product.inside)
        latency = numbers.configure_cycles + numbers.pipeline_cycles + np.ceil(np.log2(numbers.multipliers))
        cycles = product.rounds * (self._delivery(rows, product, density) + latency)
        steps["kernel"][at] = 0
        steps["tiles"][at, 0] = tiles
        steps["floor_cycles"][at, 0] = nonzeros * n * rows.input_density / numbers.multipliers / tiles
        for name in ("mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = cycles / tiles
        delivered = nonzeros * (1 + n * density) * rows.weight_bits / 8
        moved = delivered + (rows.output_elements + 2 * product.folds * n) * rows.output_bits / 8
        steps["port_bytes"][at, 0, 0] = moved / tiles
        steps["accesses"][at] = np.stack([nonzeros * n * density, nonzeros * n * density, moved], axis=1)

    def _delivery(self, rows: Columns, product: Product, density: np.ndarray) -> np.ndarray:
        """Cycles from the load of a round to the last delivery, (rows,), of inputs of which that share is delivered."""
        numbers, n, u = self.spec.parameters, product.pixels, product.values
        found = u * (n + 1)
        if not numbers.delivers_zeros:
            used = np.minimum(np.ceil(product.nonzeros / product.rounds / u), np.ceil(product.length / u))
            used = np.clip(used, 1, numbers.ports)
            alike = (x[:, None] for x in (u * density, u * density * (1 - density), u - 1, used))
            found = n + 1 + worst_backlog(Arrivals(*alike), n)
        for i, loads in enumerate(product.loads):
            if loads is None or not len(loads.used):
                continue
            if not numbers.delivers_zeros or loads.shortest < 2 * self._fed:  # else some port shares no input
                arrivals = self._arrivals(rows, i, loads, product.inside[i])
                found[i] = n[i] + 1 + worst_backlog(arrivals, np.full(len(arrivals.mean), n[i])).mean()
        return np.asarray(found)

    @property
    def _fed(self) -> int:
        """Multipliers of a port."""
        numbers = self.spec.parameters
        return int(numbers.multipliers // numbers.ports)

    def _arrivals(self, rows: Columns, i: int, loads: Loads, inside: float) -> Arrivals:
        """What every port of the rounds of row i is sent, from its mask and the density of each channel."""
        sparsity = rows.sparsity[i]
        assert isinstance(sparsity, ExactSparsity)
        is_turned, groups = bool(rows.is_op("conv_transpose")[i]), int(rows.groups[i])
        zeros = self.spec.parameters.delivers_zeros
        chance = np.ones(int(rows.c[i])) if zeros else channel_density(rows, i) * inside
        chance = (chance if is_turned else np.repeat(chance, sparsity.r * sparsity.s)).reshape(groups, -1)
        blocks = group_blocks(sparsity, groups, is_turned)
        taps = np.concatenate([np.nonzero(block.mask().reshape(block.k, -1))[1] for block in blocks])
        starts = np.cumsum(loads.used - loads.is_fold) - (loads.used - loads.is_fold)
        chosen = np.unique(np.linspace(0, len(starts) - 1, PLAYED).round().astype(int))
        kinds = np.zeros((4, len(chosen), self.spec.parameters.ports))
        for at, load in enumerate(chosen):
            fold = int(loads.is_fold[load])
            mine = np.concatenate([np.full(fold, -1), taps[starts[load] : starts[load] + loads.used[load] - fold]])
            kinds[:, at] = port_arrivals(mine, np.append(chance[loads.group[load]], 1.0), self._fed, kinds.shape[2])
        return Arrivals(*kinds)

    def _product(self, rows: Columns) -> Product:
        """Every multiplying op as matrix products, one a group (or sample, or time step)."""
        x = self.spec.parameters.multipliers
        is_matmul, is_turned, is_lstm = rows.is_op("matmul"), rows.is_op("conv_transpose"), rows.is_op("lstm")
        taps = (rows.r * rows.s).astype(float)
        groups = np.where(is_matmul, rows.n, rows.groups).astype(float)
        each = np.where(is_matmul, 1, rows.groups)
        filters = rows.k / each * np.where(is_turned, taps, 1.0)
        length = np.floor(rows.c / each) * np.where(is_turned, 1.0, taps)
        pixels = np.where(is_turned, rows.in_h * rows.in_w, rows.p * rows.q).astype(float)
        repeats = np.where(is_lstm, pixels, 1.0)
        density = np.where(rows.has_weights, rows.weight_density, 1.0)
        rounds, folds = expected_rounds(filters, length, density, x)
        nonzeros = filters * length * density
        rounds, folds, nonzeros = (groups * value for value in (rounds, folds, nonzeros))
        fed = np.minimum(x / self.spec.parameters.ports, length)
        values = np.clip(nonzeros / np.maximum(rounds, TINY), 1.0, fed)
        loads: list[Loads | None] = [None] * len(rows)
        for i, sparsity in enumerate(rows.sparsity):
            if isinstance(sparsity, ExactSparsity) and rows.has_weights[i]:
                counts = filter_counts(sparsity, int(rows.groups[i]), bool(is_turned[i]))
                loads[i] = found = Loads.of(counts, x)
                rounds[i], folds[i], nonzeros[i] = len(found.used), found.is_fold.sum(), counts.sum()
                values[i] = np.minimum(found.used, fed[i]).mean() if len(found.used) else 1.0
        return Product(
            rounds=np.maximum(rounds, TINY) * repeats,
            values=values,
            length=length,
            folds=folds * repeats,
            nonzeros=nonzeros * repeats,
            pixels=np.where(is_lstm, rows.n, np.where(is_matmul, pixels, rows.n * pixels)).astype(float),
            inside=np.where(is_turned, 1.0, 1.0 if self.spec.parameters.delivers_zeros else inside_share(rows)),
            loads=tuple(loads),
        )

    def _move(self, steps: dict[str, np.ndarray], rows: Columns, at: np.ndarray) -> None:
        """Fill `steps` at the rows `at` for elementwise work, pooling and copies."""
        moved = (rows.input_elements + rows.other_elements) * rows.input_bits / 8
        moved = moved + rows.output_elements * rows.output_bits / 8
        window = np.where(rows.is_op("max_pool", "avg_pool"), rows.r * rows.s, 1)
        operations = np.where(rows.is_vector, np.maximum(rows.output_elements * window, rows.input_elements), 0)
        steps["kernel"][at] = 1
        steps["tiles"][at, 0] = 1
        for name in ("floor_cycles", "mean_cycles", "slowest_cycles"):
            steps[name][at, 0] = operations / self.spec.parameters.multipliers
        steps["port_bytes"][at, 0, 0] = moved
        steps["accesses"][at] = np.stack([np.zeros(len(at)), operations, moved], axis=1)


@dataclass(frozen=True)
class Product:
    """Rows that multiply; float64 (rows,), of the whole layer where not said otherwise.

    Attributes:
        rounds: loads of the multipliers. folds: those that go on with a filter. nonzeros: weights loaded.
        values: that the busiest port delivers for a pixel, mean over rounds. length: weights of a filter.
        pixels: streamed in each round. inside: share of the inputs under the kernel that is not halo.
        loads: rounds counted in an exact mask, None where there is none.
    """

    rounds: np.ndarray
    values: np.ndarray
    length: np.ndarray
    folds: np.ndarray
    nonzeros: np.ndarray
    pixels: np.ndarray
    inside: np.ndarray
    loads: tuple[Loads | None, ...]


@dataclass(frozen=True)
class Loads:
    """The rounds of a known mask, all groups one after another; arrays (rounds,).

    Attributes:
        used: int64, multipliers in use. is_fold: bool, one of them holds the sum so far. group: int64, whose filters.
        shortest: weights of the shortest filter that has any.
    """

    used: np.ndarray
    is_fold: np.ndarray
    group: np.ndarray
    shortest: int

    @classmethod
    def of(cls, counts: np.ndarray, capacity: int) -> Loads:
        """From the non-zeros of each filter, (groups, filters of one)."""
        used, folds = zip(*(count_rounds(group, capacity) for group in counts), strict=True)
        return cls(
            np.concatenate(used),
            np.concatenate(folds),
            np.repeat(np.arange(len(counts)), [len(x) for x in used]),
            int(counts[counts > 0].min(initial=capacity)),
        )


def port_arrivals(taps: np.ndarray, chance: np.ndarray, fed: int, ports: int) -> np.ndarray:
    """Fields of `Arrivals` for every port, (4, ports), of a round whose multipliers hold these taps.

    Args:
        taps: int64 (multipliers in use,); -1 the sum so far, which is no weight. chance: (taps,), that an input is
            delivered; the last one is the sum's. fed: multipliers of a port, served together where they share a tap.
    """
    port = np.arange(len(taps)) // fed
    weights = np.bincount(port, taps >= 0, ports)
    port, sent = np.divmod(np.unique(port * len(chance) + taps % len(chance)), len(chance))
    share = chance[sent]
    mean, variance = np.bincount(port, share, ports), np.bincount(port, share * (1 - share), ports)
    apart = len(np.unique(sent)) / len(sent)  # ports that are sent the same wait alike
    return np.stack([mean, variance, np.maximum(weights - 1, 0), apart * (np.bincount(port, minlength=ports) > 0)])


def expected_rounds(
    filters: np.ndarray, length: np.ndarray, density: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expected loads of `capacity` multipliers for random filters of `length` weights, and how many go on with one.

    >>> [x.tolist() for x in expected_rounds(np.array([4.0]), np.array([8.0]), np.array([1.0]), 16)]  # two fit a load
    [[2.0], [0.0]]
    """
    mean = np.maximum(length * density, TINY)
    variance = np.maximum(length * density * (1 - density), TINY)
    fitting, scatter = renewals(np.full(len(mean), float(capacity)), mean, variance, length)
    fitting = np.maximum(fitting, 1.0)
    scatter = np.where(fitting > 1, scatter, TINY)
    further = renewals(filters - 1, fitting, scatter, np.full(len(mean), np.inf))[0]
    folds = np.where(length > capacity, filters * _folds(mean, variance, capacity), 0.0)
    with np.errstate(divide="ignore"):  # density 1: log1p gives -inf and expm1 the -1 that is meant
        any_weight = -np.expm1(filters * length * np.log1p(-density))
    return any_weight * (1 + further) + folds, folds


def renewals(
    total: np.ndarray, mean: np.ndarray, variance: np.ndarray, largest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of how many whole numbers add up to at most `total`, each of that mean, variance and limit."""
    count = total / mean
    deviation = np.sqrt(count * variance) / mean
    first = np.maximum(np.floor(count) - WINDOW, 0.0)
    terms = first + np.arange(1, 2 * WINDOW + 2)[:, None]
    chance = np.where(terms * largest <= total, 1.0, _below(total, terms * mean, terms * variance))
    near = first + chance.sum(axis=0)
    square = first**2 + ((2 * terms - 1) * chance).sum(axis=0)
    far = count + (variance - mean**2 + mean) / (2 * mean**2)
    is_wide = deviation > WIDE
    scatter = np.where(is_wide, deviation**2, np.maximum(square - near**2, 0.0))
    return np.where(is_wide, np.maximum(far, 0.0), near), np.maximum(scatter, TINY)


def _folds(mean: np.ndarray, variance: np.ndarray, capacity: int) -> np.ndarray:
    """Expected further loads of one filter: its non-zeros beyond `capacity`, in pieces of capacity - 1."""
    piece = capacity - 1.0
    first = np.maximum(np.floor((mean - capacity) / piece) - FOLDS, 0.0)
    starts = capacity + piece * (first + np.arange(2 * FOLDS + 1)[:, None])
    return np.asarray(first + (1 - _below(starts, mean, variance)).sum(axis=0))


def _below(bound: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Chance that a whole number, roughly normal, is at most `bound`."""
    from scipy.special import ndtr

    return np.asarray(ndtr((bound + 0.5 - mean) / np.sqrt(variance)))


def count_rounds(counts: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers in use in every load, for filters with these non-zeros in order, and which loads go on with one.

    >>> [x.tolist() for x in count_rounds(np.array([3, 3, 3, 9]), 6)]  # 3 3, 3, 6, and 3 beside the sum so far
    [[6, 3, 6, 4], [False, False, False, True]]
    """
    ends = np.cumsum(counts)
    used: list[int] = []
    folds: list[bool] = []
    done = start = 0
    while start < len(counts):
        stop = int(np.searchsorted(ends, done + capacity, side="right"))
        if stop == start:  # not even one filter
            stop, left = start + 1, int(counts[start]) - capacity
            pieces = [min(capacity - 1, left - i) for i in range(0, left, capacity - 1)]
            used += [capacity, *(1 + piece for piece in pieces)]
            folds += [False, *(True for _ in pieces)]
        elif ends[stop - 1] > done:
            used.append(int(ends[stop - 1]) - done)
            folds.append(False)
        done, start = int(ends[stop - 1]), stop
    return np.array(used, np.int64), np.array(folds, bool)


def filter_counts(sparsity: ExactSparsity, groups: int, is_turned: bool = False) -> np.ndarray:
    """Non-zeros of every filter, (groups, K of one); of a transposed convolution of every filter and tap."""
    if is_turned:
        counts = sparsity.mask().sum(axis=1).reshape(groups, -1)
    else:
        counts = sparsity.filter_counts.reshape(groups, -1)
    return np.asarray(counts)
