import random
import time

import pytest
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.free_runs import FreeRuns

HASHES = [bytes([i]) * 16 for i in range(64)]


def filled(pool: BlockPool, hashes: list[bytes]) -> list[int]:
    """Referenced blocks committed under `hashes`."""
    blocks = pool.allocate(len(hashes))
    assert blocks is not None
    for block, digest in zip(blocks, hashes, strict=True):
        pool.commit(block, digest)
    return blocks


def test_allocate_gives_distinct_blocks_or_nothing() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(3)
    assert blocks == [0, 1, 2]
    assert pool.allocate(2) is None
    assert pool.allocate(0) == []
    assert (pool.num_free, pool.num_used) == (1, 3)
    pool.free(blocks)
    pool.check([])


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 blocks"):
        BlockPool(0, 16)


def test_match_pins_the_longest_known_prefix() -> None:
    pool = BlockPool(8, 16)
    blocks = filled(pool, HASHES[:3])
    pool.free(blocks)
    assert pool.num_free == 8
    assert pool.match([*HASHES[:2], HASHES[9], HASHES[2]]) == blocks[:2]
    assert pool.num_free == 6
    pool.check([blocks[:2]])
    assert pool.match(HASHES[:3]) == blocks
    pool.check([blocks[:2], blocks])
    assert pool.match([HASHES[9]]) == []


def test_the_least_recently_used_is_evicted_and_a_suffix_before_its_prefix() -> None:
    pool = BlockPool(6, 16)
    old, new = filled(pool, HASHES[:3]), filled(pool, HASHES[3:6])
    pool.free(old)
    pool.free(new)
    pool.free(pool.match(HASHES[:1]))
    assert pool.allocate(2) == old[1:]
    assert pool.match(HASHES[:3]) == old[:1]
    assert pool.match(HASHES[3:6]) == new
    pool.check([old, new])


def test_pinned_blocks_are_not_evicted() -> None:
    pool = BlockPool(3, 16)
    blocks = filled(pool, HASHES[:3])
    pool.free(blocks[2:])
    assert pool.allocate(2) is None
    assert pool.allocate(1) == blocks[2:]
    assert pool.match(HASHES[:3]) == blocks[:2]


def test_a_second_block_of_the_same_hash_stays_out_of_the_cache() -> None:
    pool = BlockPool(4, 16)
    (first,), (second,) = filled(pool, HASHES[:1]), filled(pool, HASHES[:1])
    pool.free([second])
    pool.check([[first]])
    assert pool.match(HASHES[:1]) == [first]


def test_without_prefix_caching_nothing_is_known() -> None:
    pool = BlockPool(4, 16, enable_prefix_caching=False)
    blocks = filled(pool, HASHES[:2])
    pool.free(blocks)
    assert pool.match(HASHES[:2]) == []
    pool.check([])


def test_shared_blocks_are_freed_with_the_last_reference() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.share(blocks[:1])
    pool.free(blocks)
    assert pool.num_used == 1
    pool.check([blocks[:1]])
    pool.free(blocks[:1])
    pool.check([])


def test_misuse_is_caught() -> None:
    pool = BlockPool(4, 16)
    (block,) = filled(pool, HASHES[:1])
    with pytest.raises(AssertionError, match="something else"):
        pool.commit(block, HASHES[1])
    with pytest.raises(AssertionError, match="references"):
        pool.check([])
    pool.free([block])
    for misuse in (pool.free, pool.share):
        with pytest.raises(AssertionError):
            misuse([block])
    with pytest.raises(AssertionError):
        pool.commit(block, HASHES[0])


def test_check_sees_a_leak() -> None:
    pool = BlockPool(4, 16)
    pool._free.take(1)
    with pytest.raises(AssertionError, match="no or two states"):
        pool.check()


def test_sequences_that_grow_in_turn_stay_contiguous() -> None:
    pool = BlockPool(64, 16)
    tables = [pool.allocate(4) for _ in range(4)]
    for _ in range(6):
        for table in tables:
            assert table is not None
            grown = pool.allocate(1, after=table[-1])
            assert grown is not None
            table += grown
    for table in tables:
        assert table is not None
        assert table == list(range(table[0], table[0] + 10))


def test_a_free_run_is_extended_before_another_is_begun() -> None:
    pool = BlockPool(10, 16)
    blocks = pool.allocate(10)
    assert blocks is not None
    pool.free([1, 3, 4, 7, 8, 9])
    assert pool.allocate(2, after=2) == [3, 4]


def test_random_use() -> None:
    rng = random.Random(1)
    pool = BlockPool(24, 4)
    tables: list[list[int]] = []
    for _ in range(4000):
        action = rng.random()
        if action < 0.4:
            table = pool.match([HASHES[rng.randrange(12)] for _ in range(rng.randint(0, 2))])
            fresh = pool.allocate(rng.randint(0, 6), after=table[-1] if table else None)
            for block in fresh or []:
                if rng.random() < 0.5:
                    pool.commit(block, HASHES[rng.randrange(40)])
            tables.append(table + (fresh or []))
        elif action < 0.5 and tables:
            pool.share(table := rng.choice(tables))
            tables.append(list(table))
        elif tables:
            pool.free(tables.pop(rng.randrange(len(tables))))
        pool.check(tables)
    for table in tables:
        pool.free(table)
    pool.check([])
    assert pool.num_used == 0


def test_free_runs_merge_with_both_neighbours() -> None:
    runs = FreeRuns(8)
    assert runs.take(8) == list(range(8))
    for block in (2, 4, 3, 0, 1):
        runs.add(block)
    assert runs.take(5) == [0, 1, 2, 3, 4]
    assert len(runs) == 0


def test_free_runs_equal_a_set() -> None:
    rng = random.Random(2)
    runs, free = FreeRuns(50), set(range(50))
    for _ in range(3000):
        if rng.random() < 0.5 and free:
            taken = runs.take(rng.randint(1, min(9, len(free))), rng.choice([None, rng.randrange(50)]))
            assert len(set(taken)) == len(taken)
            assert free.issuperset(taken)
            free.difference_update(taken)
        elif len(free) < 50:
            block = rng.choice(sorted(set(range(50)) - free))
            runs.add(block)
            free.add(block)
        assert sorted(runs.blocks()) == sorted(free)
        assert len(runs) == len(free)


def test_a_large_pool_is_no_slower() -> None:
    def seconds(num_blocks: int) -> float:
        pool = BlockPool(num_blocks, 16)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(100):
                blocks = pool.allocate(8)
                assert blocks is not None
                pool.free(blocks)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(200_000) < 20 * seconds(200)
