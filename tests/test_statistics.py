"""BatchStats and GradientSums: values that can be taken part by part, merged, kept and sent."""

import copy
import itertools
import operator
import pickle

import numpy as np
import pytest
from arrays import (
    HARD,
    U64,
    assert_dx,
    assert_parameter_gradients,
    assert_stats,
    assert_within,
    channels_of,
    from_channels,
    hard_channel,
    mixture,
    random_array,
    true_stats,
)

import fastbn
from fastbn import BatchStats, GradientSums

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)


@pytest.fixture
def stats():
    return BatchStats(4, [1.0, -2.0], [0.5, 3.0])


@pytest.fixture
def sums():
    return GradientSums([1.0, 2.0], [3.0, 4.0])


# ---- values


def test_they_unpack(stats, sums):
    count, mean, var = stats
    assert (count, mean.tolist(), var.tolist()) == (4, [1, -2], [0.5, 3])
    assert (stats.count, stats.mean.tolist(), stats.var.tolist()) == (4, [1, -2], [0.5, 3])
    sum_dy, sum_dy_xmu = sums
    assert (sum_dy.tolist(), sum_dy_xmu.tolist()) == ([1, 2], [3, 4])
    assert (sums.sum_dy.tolist(), sums.sum_dy_xmu.tolist()) == ([1, 2], [3, 4])


@pytest.mark.parametrize("given", [np.float32, np.float64, list, tuple], ids=lambda given: given.__name__)
def test_they_hold_float64_copies(given):
    def vector(*numbers):
        return given(numbers) if given in (list, tuple) else np.array(numbers, given)

    mean, var = vector(1, 2), vector(3, 4)
    for value in (BatchStats(np.int32(4), mean, var), GradientSums(mean, var)):
        a, b = value[-2:]
        assert a.dtype == b.dtype == np.float64
        mean_before = a.tolist()
        if isinstance(mean, (np.ndarray, list)):
            mean[0] += 100
        assert a.tolist() == mean_before
    assert type(BatchStats(np.int32(4), mean, var).count) is int


def of_calls():
    """Values as functions return them."""
    x = random_array((6, 3, 4))
    whole = fastbn.batch_stats(x)
    yield whole
    yield fastbn.batch_norm(x)[1]
    yield whole.merge(whole)
    yield whole.merge(BatchStats(0, np.zeros(3), np.zeros(3)))
    yield fastbn.population_stats([x, x])
    yield fastbn.population_stats([x, x], method="paper")
    yield fastbn.backward_sums(x, x, whole)
    yield fastbn.backward_sums(x, x, whole) + fastbn.backward_sums(x, x, whole)
    yield sum([fastbn.backward_sums(x, x, whole)] * 3)


def everything():
    yield BatchStats(4, [1.0, -2.0], [0.5, 3.0])
    yield GradientSums([1.0, 2.0], [3.0, 4.0])
    yield from of_calls()


@pytest.mark.parametrize(
    "values", [[True], [None], np.zeros(1, "m8[s]"), np.zeros(1, "M8[s]"), [b"1"], ["1"], [1j]], ids=repr
)
def test_they_are_real_numbers(values):
    with pytest.raises(TypeError, match=r"^mean: expected real numbers, got dtype"):
        BatchStats(2, values, [1])
    with pytest.raises(TypeError, match=r"^sum_dy: expected real numbers, got dtype"):
        GradientSums(values, [1])


def test_they_cannot_be_changed():
    for value in everything():
        for vector in value[-2:]:
            with pytest.raises(ValueError, match="read-only"):
                vector[0] = 7
            with pytest.raises(ValueError, match="read-only"):
                vector += 1
        with pytest.raises(AttributeError):
            setattr(value, value._fields[0], 5)
        with pytest.raises(AttributeError):
            value.other = 5
        with pytest.raises(TypeError):
            value[0] = 5


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle-{n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in range(6)},
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal_and_cannot_be_changed(how):
    for value in everything():
        other = COPIES[how](value)
        assert type(other) is type(value)
        assert len(other) == len(value)
        assert all(np.array_equal(a, b) for a, b in zip(value, other, strict=True))
        assert other == value
        for vector in other[-2:]:
            assert vector.dtype == np.float64
            with pytest.raises(ValueError, match="read-only"):
                vector[0] = 7


def test_they_are_compared_with_plain_tuples(stats, sums):
    """Which, as NumPy has it, would be ambiguous."""
    same = (4, np.array([1.0, -2.0]), [0.5, 3.0])
    for equal in (stats == same, same == stats, sums == ([1, 2], [3, 4]), stats in [same]):
        assert equal is True
    others = ((4, stats.mean, np.array([0.5, 2.0])), (4, stats.mean), (4, stats.mean, stats.var, 0), ("a", "b", "c"))
    for other in others:
        assert (stats == other) is (other == stats) is False
        assert (stats != other) is (other != stats) is True


def test_they_equal_nothing_but_tuples(stats, sums):
    for value in (stats, sums):
        for other in (None, 4, "three", list(value)):
            assert (value == other) is (other == value) is False
            assert (value != other) is (other != value) is True


def test_they_are_compared_by_content(stats, sums):
    assert stats == BatchStats(4, [1, -2], [0.5, 3])
    assert (stats != BatchStats(4, [1, -2], [0.5, 3])) is False
    for other in (BatchStats(5, *stats[1:]), BatchStats(4, [1, -1], stats.var), BatchStats(4, stats.mean, [0.5, 2])):
        assert stats != other
        assert (stats == other) is False
    assert sums == GradientSums([1, 2], [3, 4])
    assert (stats == sums) is (sums == stats) is False
    assert sums != GradientSums([1, 2], [3, 5])
    assert sums != GradientSums([1, 1], [3, 4])
    assert stats != sums


def test_unbiased_variance(stats):
    # 4/3 of 0.5 and of 3: the quotient and the product are rounded
    np.testing.assert_allclose(stats.unbiased_var, [2 / 3, 4], rtol=2 * U64)
    assert BatchStats(2, [5], [1.5]).unbiased_var.tolist() == [3]
    for count in (0, 1):
        with pytest.raises(ValueError, match="count"):
            BatchStats(count, [1.0], [0.0]).unbiased_var  # noqa: B018


# ---- merging statistics


def cuts_of(n, parts, rng):
    """Slices that cut n values into parts of unequal length, of which the first has one value and one has none."""
    edges = np.sort(rng.integers(1, n, parts - 3))
    edges = [0, 1, *edges, edges[-1], n]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def test_merge_by_hand():
    # 1, 3 | 5, 9, 10: means 2 and 8, variances 1 and 14/3. Together: mean 28/5; sum of squares 216 - 5*5.6**2 = 59.2.
    merged = BatchStats(2, [2.0], [1.0]).merge(BatchStats(3, [8.0], [14 / 3]))
    assert merged.count == 5
    assert type(merged.count) is int
    np.testing.assert_allclose(merged.mean, [5.6], rtol=4 * U64)
    np.testing.assert_allclose(merged.var, [11.84], rtol=8 * U64)
    # Exactly: 0, 0 | 4, 4 | 2, 2 with variances 1, 2, 3: mean 2, variance mean(1 + 4, 2 + 4, 3 + 0) = 14/3.
    merged = BatchStats(2, [0.0], [1.0]).merge(BatchStats(2, [4.0], [2.0]), BatchStats(2, [2.0], [3.0]))
    assert merged == BatchStats(6, [2.0], [28 / 6])


def assert_merged(merged, stats, x):
    """P1 for float32 x. For float64 x the means of the parts have been rounded, which limits what can be known.

    With u = 2**-53 and m the largest mean of a part: each deviation of a mean from the first is within 4u*m, so the
    merged mean is too, and a weighted sum of squared deviations, at most var, within 2*4u*m*std. The rest as there.
    """
    if x.dtype == np.float32:
        assert_stats(merged, x)
        return
    mean, var = true_stats(x)
    largest, std = np.max([abs(part.mean) for part in stats], axis=0), np.sqrt(var)
    assert merged.count == channels_of(x).shape[1]
    assert_within(merged.mean, mean, U64 * (64 * std + 4 * largest))
    assert_within(merged.var, var, U64 * (200 * var + 8 * largest * std))


@dtypes
@pytest.mark.parametrize("parts", [4, 7, 40])
@pytest.mark.parametrize("name", HARD)
def test_merged_statistics_are_those_of_the_whole(name, parts, dtype):
    """For hard data too. Each part's statistics come from the formulas, so that merge alone is on trial."""
    n = 2000
    channels = np.stack([hard_channel(name, n, dtype), hard_channel("offset-1", n, dtype)])
    x = from_channels(channels, (n, 2), dtype)
    stats = []
    for cut in cuts_of(n, parts, np.random.default_rng(parts)):
        mean, var = true_stats(x[cut]) if len(x[cut]) else np.zeros((2, 2))
        stats.append(BatchStats(len(x[cut]), mean.astype(float), var.astype(float)))
    assert_merged(stats[0].merge(*stats[1:]), stats, x)
    assert_merged(stats[-1].merge(*stats[:-1]), stats, x)


def test_merged_statistics_of_calls_are_those_of_the_whole():
    x = from_channels(mixture(3000), (3000, len(HARD)))
    cuts = cuts_of(3000, 8, np.random.default_rng(0))
    stats = [fastbn.batch_stats(x[cut]) for cut in cuts]
    assert sorted(s.count for s in stats)[0] == 0
    assert_stats(stats[0].merge(*stats[1:]), x)
    one_by_one = BatchStats(0, np.zeros(len(HARD)), np.zeros(len(HARD)))
    for part in stats:
        one_by_one = one_by_one.merge(part)
    assert_stats(one_by_one, x)


def test_merge_is_associative_and_commutative_to_rounding():
    """Five roundings each for mean and variance in a merge of two, twice over: 20u of std + abs(mean), and of var."""
    rng = np.random.default_rng(0)
    a, b, c = (BatchStats(n, rng.normal(size=50), rng.uniform(0.5, 2, 50)) for n in (3, 10, 1000))
    results = [a.merge(b).merge(c), a.merge(b.merge(c)), a.merge(b, c), c.merge(b, a), b.merge(c).merge(a)]
    for result in results[1:]:
        assert result.count == 1013
        size = np.sqrt(results[0].var) + abs(results[0].mean)
        assert (abs(result.mean - results[0].mean) <= 20 * U64 * size).all()
        assert (abs(result.var - results[0].var) <= 40 * U64 * results[0].var).all()


def test_a_count_of_0_is_the_identity(stats):
    nothing = fastbn.batch_stats(np.empty((0, 2)))
    odd_nothing = BatchStats(0, [np.nan, np.inf], [np.nan, 7.0])
    assert stats.merge() == stats
    for zero in (nothing, odd_nothing):
        assert stats.merge(zero) == stats
        assert zero.merge(stats) == stats
        assert zero.merge(zero, stats, zero) == stats
    assert nothing.merge(nothing) == nothing


def test_equal_constants_merge_without_rounding():
    """Multiples of 0.1, 1/3 and -7.3 are not representable: still the variance is 0 and the mean the value."""
    constants = np.array([0.1, 1 / 3, -7.3, 1e300, 3e38, 0])
    parts = [BatchStats(n, constants, np.zeros(6)) for n in (1, 3, 7, 1000)]
    merged = parts[0].merge(*parts[1:])
    assert merged.mean.tolist() == constants.tolist()
    assert merged.var.tolist() == [0] * 6


def test_nan_and_infinity_stay_in_their_channel_when_merged():
    good, odd = (
        BatchStats(3, [1.0] * 4, [2.0] * 4),
        BatchStats(3, [1, np.nan, np.inf, -np.inf], [2, np.nan, np.nan, np.nan]),
    )
    for merged in (good.merge(odd), odd.merge(good)):
        assert merged.mean[0] == 1
        assert merged.var[0] == 2
        assert np.array_equal(merged.mean[1:], [np.nan, np.inf, -np.inf], equal_nan=True)
        assert np.isnan(merged.var[1:]).all()


def test_merge_wants_as_many_channels(stats):
    for other in (BatchStats(3, [1.0], [1.0]), BatchStats(0, [1.0] * 3, [1.0] * 3)):
        with pytest.raises(ValueError, match="expected 2 channels"):
            stats.merge(other)
        with pytest.raises(ValueError, match="expected 2 channels"):
            stats.merge(stats, other)


def test_merge_wants_batch_stats(stats):
    with pytest.raises(TypeError, match="expected BatchStats, got tuple"):
        stats.merge(tuple(stats))
    with pytest.raises(TypeError):
        stats + stats


def test_values_are_counted_no_further_than_they_can_be():
    half = BatchStats(2**62, [0.0], [1.0])
    assert half.merge(BatchStats(2**62 - 1, [0.0], [1.0])).count == 2**63 - 1
    for count in (lambda: half.merge(half), lambda: fastbn.population_stats([half, half], method="paper")):
        with pytest.raises(ValueError, match=r"^count: expected .* below 2\*\*63, got 9223372036854775808"):
            count()


def test_what_is_not_finite_is_silent():
    odd = BatchStats(2, [np.inf, 1.7e308], [np.nan, 1.7e308])
    with np.errstate(all="raise"):
        fastbn.population_stats([odd, BatchStats(2, [-np.inf, 1.7e308], [1.0, 1.7e308])], method="paper")
        total = GradientSums([np.inf, 1.7e308], [1, 1]) + GradientSums([-np.inf, 1.7e308], [1, 1])
    assert np.array_equal(total.sum_dy, [np.nan, np.inf], equal_nan=True)


def test_unbiased_variances_overflow_in_silence():
    stats = BatchStats(2, [0.0, 0.0], [1.7e308, 1.0])
    with np.errstate(all="raise"):
        assert stats.unbiased_var.tolist() == [np.inf, 2.0]


# ---- populations


def test_population_by_hand():
    batches = [np.array([[1.0], [3.0]]), np.array([[5.0], [9.0], [10.0]])]
    # All five values: see test_merge_by_hand. Mean of means (2 + 8)/2; mean of unbiased variances (2 + 7)/2.
    for given in (
        batches,
        iter(batches),
        [fastbn.batch_stats(b) for b in batches],
        [batches[0], fastbn.batch_stats(batches[1])],
    ):
        pooled = fastbn.population_stats(given)
        assert pooled.count == 5
        np.testing.assert_allclose(pooled.mean, [5.6], rtol=4 * U64)
        np.testing.assert_allclose(pooled.var, [11.84], rtol=8 * U64)
        np.testing.assert_allclose(pooled.unbiased_var, [14.8], rtol=10 * U64)
    paper = fastbn.population_stats(batches, method="paper")
    assert paper.count == 5
    assert paper.mean.tolist() == [5]
    np.testing.assert_allclose(paper.unbiased_var, [4.5], rtol=8 * U64)


@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_empty_batches_count_for_nothing(method):
    x = random_array((6, 3), np.float64)
    nothing = np.empty((0, 3))
    with_nothing = fastbn.population_stats([nothing, x[:2], nothing, x[2:]], method=method)
    without = fastbn.population_stats([x[:2], x[2:]], method=method)
    assert with_nothing == without


def test_pooled_population_of_hard_data_is_that_of_all_values():
    x = from_channels(mixture(3000), (3000, len(HARD)))
    assert_stats(fastbn.population_stats([x[:10], x[10:17], x[17:]]), x)


def test_population_wants_values():
    with pytest.raises(ValueError, match="batches"):
        fastbn.population_stats([])
    with pytest.raises(ValueError, match="batches"):
        fastbn.population_stats([np.empty((0, 3))], method="paper")
    with pytest.raises(ValueError, match="batches"):
        fastbn.population_stats([np.ones((1, 3)), np.ones((2, 3))], method="paper")


# ---- sums of gradients


def test_sums_add_up(sums):
    other = GradientSums([10.0, 20.0], [30.0, 40.0])
    assert sums + other == GradientSums([11, 22], [33, 44])
    assert sum([sums, other, other]) == GradientSums([21, 42], [63, 84])
    assert sums == GradientSums([1, 2], [3, 4])


def test_sums_add_up_with_nothing_else(sums):
    with pytest.raises(ValueError, match="expected 2 channels"):
        sums + GradientSums([1.0], [2.0])
    for other in (1, 0.0, BatchStats(2, [1.0, 1.0], [1.0, 1.0])):
        with pytest.raises(TypeError):
            sums + other
        with pytest.raises(TypeError):
            other + sums


def test_they_are_not_concatenated(stats, sums):
    """Though they are tuples, by class."""
    pair = (1, 2)
    for value in (stats, sums):
        with pytest.raises(TypeError):
            value + pair
        with pytest.raises(TypeError):
            pair + value
        with pytest.raises(TypeError):
            value * 2
        with pytest.raises(TypeError):
            2 * value


# ---- one batch in several parts


@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_micro_batches_give_what_the_whole_batch_gives(layout, dtype):
    """Statistics and sums over parts of 1, 5, 0 and 6 samples: y, dx and the gradients are those of 12."""
    x, dy = random_array((12, 4, 9), dtype), random_array((12, 4, 9), dtype, seed=1)
    if layout == "channels-last":
        x = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    gamma, beta = np.random.default_rng(0).normal(size=(2, 4)).astype(dtype)
    parts = [slice(0, 1), slice(1, 6), slice(6, 6), slice(6, 12)]
    first, *others = (fastbn.batch_stats(x[part]) for part in parts)
    stats = first.merge(*others)
    assert_stats(stats, x)
    y = np.concatenate([fastbn.normalize(x[part], stats.mean, stats.var, gamma, beta) for part in parts])
    np.testing.assert_array_max_ulp(y, fastbn.normalize(x, stats.mean, stats.var, gamma, beta), 0)
    sums = sum(fastbn.backward_sums(dy[part], x[part], stats, gamma, beta) for part in parts)
    gradients = [fastbn.backward_apply(dy[part], x[part], stats, sums, gamma, beta) for part in parts]
    dx = np.concatenate([gradient.dx for gradient in gradients])
    assert_dx(dx, dy, x, stats, gamma, 1e-5)
    for gradient in gradients:
        assert_parameter_gradients(gradient.dgamma, gradient.dbeta, dy, x, stats.mean, stats.var, 1e-5)


def test_a_part_far_from_the_rest():
    """Parts whose own means are 1e4 of their standard deviations from the mean of all."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(m, 1, (50, 3)) for m in (-1e4, 0, 2e4, 0)]).astype(np.float32)
    dy = rng.normal(3, 1, x.shape).astype(np.float32)
    parts = [slice(k, k + 50) for k in range(0, 200, 50)]
    first, *others = (fastbn.batch_stats(x[part]) for part in parts)
    stats = first.merge(*others)
    assert_stats(stats, x)
    sums = sum(fastbn.backward_sums(dy[part], x[part], stats) for part in parts)
    dx = [fastbn.backward_apply(dy[part], x[part], stats, sums).dx for part in parts]
    assert_dx(np.concatenate(dx), dy, x, stats, None, 1e-5)
    assert channels_of(x).shape == (3, 200)


@pytest.mark.parametrize(
    "value", [fastbn.batch_stats(np.ones((2, 2))), fastbn.GradientSums([1.0, 2.0], [3.0, 4.0])], ids=["stats", "sums"]
)
def test_no_sequences_for_numpy(value):
    """As on the right, arrays and numbers on the left do not take them for two rows."""
    for left in (np.ones(2), np.float64(2), np.ones((2, 2))):
        for operate in (operator.add, operator.mul, operator.sub):
            with pytest.raises(TypeError, match=r"unsupported operand|to add, got|not added"):
                operate(left, value)
