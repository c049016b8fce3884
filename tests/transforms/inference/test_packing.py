"""The pool gives out every sequence once, within the budget, with little padding, and is fair to all submitters."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tagstream.transforms.inference.packing import EQUAL_TOKENS, MIN_TOKENS, PATIENCE, SMALL_PART, TOLERANCE, Pool

lengths_of_owners = st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=60), min_size=1, max_size=6)


def drain(pool: Pool, budget: int, max_rows: int):
    while len(pool):
        yield pool.take(budget, max_rows)


@given(lengths_of_owners, st.integers(1, 4096), st.integers(1, 64))
def test_every_sequence_once_within_budget(owners: list[list[int]], budget: int, max_rows: int) -> None:
    """No sequence is lost or given twice, and rows x longest stays within the budget.

    Only a sequence that is longer than the budget may exceed it, alone.
    """
    pool = Pool()
    for owner, lengths in enumerate(owners):
        pool.add(owner, np.array(lengths, np.int32))
    assert len(pool) == sum(map(len, owners))
    seen = []
    for micro in drain(pool, budget, max_rows):
        taken = [(owner, int(i)) for owner, sequences in micro.parts for i in sequences]
        lengths = [owners[owner][i] for owner, i in taken]
        assert micro.rows == len(taken) <= max_rows
        assert micro.length == max(lengths)
        assert micro.tokens == sum(lengths)
        assert micro.rows == 1 or micro.padded_tokens <= budget
        assert min(lengths) >= TOLERANCE * micro.length - 1 or micro.padded_tokens <= MIN_TOKENS
        seen += taken
    assert sorted(seen) == [(owner, i) for owner, lengths in enumerate(owners) for i in range(len(lengths))]


def test_padding_is_low_on_lognormal_lengths() -> None:
    """At most 3 % of the computed tokens are padding, with median 30, mean 46 tokens and blocks of 2,048 in flight."""
    chooser = np.random.default_rng(0)
    pool = Pool()
    for owner in range(4):
        lengths = chooser.lognormal(np.log(30), np.sqrt(2 * np.log(46 / 30)), 2048).clip(2, 512).astype(np.int32)
        pool.add(owner, lengths)
    micros = list(drain(pool, 2048, 4096))
    assert 1 - sum(m.tokens for m in micros) / sum(m.padded_tokens for m in micros) <= 0.03


def test_small_submitter_goes_before_large_one() -> None:
    """A single row is in the next micro-batch, although thousands of others are pending."""
    pool = Pool()
    pool.add("bulk", np.full(5000, 40, np.int32))
    pool.take(2048, 4096)
    pool.add("trickle", np.array([12], np.int32))
    assert "trickle" in {owner for owner, _ in pool.take(2048, 4096).parts}


def test_small_submitter_does_not_wait_for_a_budget_full_of_others() -> None:
    """A small submitter's micro-batch uses part of the budget, unless one micro-batch holds all pending sequences."""
    for count, padded in ((5000, 2048 // SMALL_PART), (40, 41 * 40)):
        pool = Pool()
        pool.add("bulk", np.full(count, 40, np.int32))
        pool.add("trickle", np.array([40], np.int32))
        micro = pool.take(2048, 4096)
        assert "trickle" in {owner for owner, _ in micro.parts}
        assert padded - 40 < micro.padded_tokens <= padded


def test_large_submitter_is_not_starved() -> None:
    """The oldest submitter gets its turn after PATIENCE micro-batches, however many small ones arrive."""
    pool = Pool()
    pool.add("bulk", np.full(5000, 400, np.int32))
    owners = []
    for number in range(3 * (PATIENCE + 1)):
        pool.add(number, np.array([12], np.int32))
        owners.append({owner for owner, _ in pool.take(2048, 4096).parts})
    assert sum("bulk" in o for o in owners) == 3


def test_micro_batches_mix_owners() -> None:
    """Sequences of equal length from different blocks share a forward pass."""
    pool = Pool()
    for owner in "abc":
        pool.add(owner, np.array([20, 20], np.int32))
    assert sorted(owner for owner, _ in pool.take(2048, 4096).parts) == ["a", "b", "c"]


@given(lengths_of_owners, st.integers(1, 4096), st.integers(1, 64))
def test_buckets_are_the_only_lengths(owners: list[list[int]], budget: int, max_rows: int) -> None:
    """Every sequence comes once, is padded to the bucket of the longest one, and fits the budget.

    Only a small micro-batch takes sequences from the bucket below.
    """
    buckets = (16, 24, 32, 64, 128, 256, 512, 600)
    pool = Pool(buckets)
    for owner, lengths in enumerate(owners):
        pool.add(owner, np.array(lengths, np.int32))
    seen = 0
    for micro in drain(pool, budget, max_rows):
        lengths = [owners[owner][i] for owner, sequences in micro.parts for i in sequences]
        assert micro.length == min(bucket for bucket in buckets if bucket >= max(lengths))
        assert micro.rows == 1 or micro.padded_tokens <= budget
        below = [bucket for bucket in buckets if bucket < micro.length]
        assert not below or min(lengths) > below[-1] or micro.padded_tokens <= MIN_TOKENS
        seen += len(lengths)
    assert seen == sum(map(len, owners))


def test_many_equal_lengths_go_without_padding() -> None:
    """Enough sequences of one length to fill a GPU go without shorter ones. With fewer, shorter ones come along."""
    for enough in (True, False):
        pool = Pool()
        count = EQUAL_TOKENS // 64 if enough else EQUAL_TOKENS // 64 - 1
        pool.add("a", np.array([64] * count + [60] * 100, np.int32))
        micro = pool.take(65_536, 4096)
        assert micro.rows == (count if enough else count + 100)
        assert (micro.tokens == micro.padded_tokens) is enough
