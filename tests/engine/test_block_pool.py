"""Blocks are held, shared, released, taken least recently used first, and found by name until they are taken."""

import pytest

from polyserve.engine.block_pool import BlockPool, OutOfBlocks, digest_of, root_of

ROOT = root_of(b"")
NAME = digest_of([1, 2, 3], parent=ROOT)


def test_a_released_block_is_found_again_by_name():
    pool = BlockPool(num_blocks=2)
    block = pool.take()
    pool.name(block, NAME)
    pool.release(block)
    assert pool.find(NAME) == block


def test_a_block_that_is_taken_forgets_its_name():
    pool = BlockPool(num_blocks=1)
    block = pool.take()
    pool.name(block, NAME)
    pool.release(block)
    assert pool.take() == block
    assert pool.find(NAME) is None


def test_a_free_block_that_is_held_again_is_not_taken():
    pool = BlockPool(num_blocks=2)
    block, other = pool.take(), pool.take()
    pool.name(block, NAME)
    pool.release(block)
    pool.release(other)
    pool.hold(block)
    assert pool.take() == other
    assert pool.num_free == 0


def test_the_least_recently_released_block_is_taken_first():
    pool = BlockPool(num_blocks=3)
    blocks = [pool.take() for _ in range(3)]
    for number, block in enumerate(blocks):
        pool.name(block, digest_of([number], parent=ROOT))
    for block in (blocks[1], blocks[2], blocks[0]):
        pool.release(block)
    assert [pool.take() for _ in range(3)] == [blocks[1], blocks[2], blocks[0]]


def test_a_block_without_a_name_is_taken_before_one_that_could_be_found_again():
    pool = BlockPool(num_blocks=2)
    named, nameless = pool.take(), pool.take()
    pool.name(named, NAME)
    pool.release(named)
    pool.release(nameless)
    assert pool.take() == nameless


def test_a_shared_block_is_free_only_when_everyone_has_let_go():
    pool = BlockPool(num_blocks=1)
    block = pool.take()
    pool.hold(block)
    pool.release(block)
    assert (pool.num_holders(block), pool.num_free) == (1, 0)
    pool.release(block)
    assert (pool.num_holders(block), pool.num_free) == (0, 1)


def test_taking_from_an_empty_pool_says_so():
    pool = BlockPool(num_blocks=1)
    pool.take()
    with pytest.raises(OutOfBlocks, match="all 1 KV blocks"):
        pool.take()


def test_releasing_a_block_twice_is_caught():
    pool = BlockPool(num_blocks=1)
    block = pool.take()
    pool.release(block)
    with pytest.raises(AssertionError, match="nobody holds it"):
        pool.release(block)


def test_the_first_block_of_a_name_keeps_it():
    pool = BlockPool(num_blocks=2)
    first, second = pool.take(), pool.take()
    pool.name(first, NAME)
    pool.name(second, NAME)
    assert pool.find(NAME) == first


def test_a_name_stands_for_its_tokens_all_tokens_before_them_and_the_salt():
    names = {
        digest_of([1, 2], parent=ROOT),
        digest_of([2, 1], parent=ROOT),
        digest_of([1, 2], parent=root_of(b"other numbers")),
        digest_of([1, 2], parent=digest_of([1, 2], parent=ROOT)),
        digest_of([256, 2], parent=ROOT),
    }
    assert len(names) == 5


def test_names_are_the_same_in_every_process():
    name = digest_of([1, 2, 3], parent=root_of(b"salt"))
    assert name.hex() == "2166505ed602cf3afec27031bbd8b49390fa08e4fcb9d75f2fc1748792ee92b7"
