"""Who holds which block of the KV cache, and which blocks are worth finding again.

A block is an integer. It is held by zero or more sequences; a block that nobody holds is free and waits in a queue,
least recently used first, until it is taken. While it waits it keeps what it stores, so a full block that was named
can be found by its name and held again. A name is a chained digest: it stands for the block's tokens and for every
token before them, and is equal across processes.

Source  PagedAttention, https://arxiv.org/abs/2309.06180, section 4 (reference counts);
        prefix names as in vLLM's automatic prefix caching
"""

import struct
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from polyserve.engine.kept_logprobs import KeptLogprobs

DIGEST_BYTES = 32  # a collision would show one client another's text: as hard as breaking SHA-256


def root_of(salt: bytes) -> bytes:
    """The parent of every first block. Blocks named under different salts are never taken for each other."""
    return blake2b(salt, digest_size=DIGEST_BYTES).digest()


def digest_of(token_ids: Sequence[int], *, parent: bytes) -> bytes:
    """The name of a full block: its tokens, after everything that `parent` names."""
    return blake2b(parent + struct.pack(f"<{len(token_ids)}q", *token_ids), digest_size=DIGEST_BYTES).digest()


class OutOfBlocks(Exception):
    """Every block is held."""


class BlockPool:
    """Every operation is O(1)."""

    def __init__(self, num_blocks: int) -> None:
        self._holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))  # the next to be taken first
        self._names: list[bytes | None] = [None] * num_blocks
        self._named: dict[bytes, int] = {}
        self._kept: dict[int, KeptLogprobs] = {}  # of blocks that have a name

    @property
    def num_blocks(self) -> int:
        return len(self._holders)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_holders(self, block: int) -> int:
        return self._holders[block]

    def take(self) -> int:
        """Hold the least recently used free block; what it stored is forgotten. Raises OutOfBlocks if all are held."""
        if not self._free:
            raise OutOfBlocks(f"all {self.num_blocks} KV blocks are in use")
        block, _ = self._free.popitem(last=False)
        self._forget_name(block)
        self._holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Share a block that somebody holds, or keep a free one from being taken."""
        if self._holders[block] == 0:
            del self._free[block]
        self._holders[block] += 1

    def release(self, block: int) -> None:
        """Let go once. A block without a name has nothing to be found again for, so it is the first to be taken."""
        assert self._holders[block] > 0, f"block {block} is released but nobody holds it"
        self._holders[block] -= 1
        if self._holders[block] == 0:
            self._free[block] = None
            if self._names[block] is None:
                self._free.move_to_end(block, last=False)

    def name(self, block: int, digest: bytes) -> None:
        """Let `find` answer `block` for `digest`. If another block has the name already, it keeps it."""
        assert self._holders[block] > 0, f"block {block} is named but nobody holds it"
        assert self._names[block] in (None, digest), f"block {block} already stores something else"
        if digest not in self._named:
            self._names[block] = digest
            self._named[digest] = block

    def find(self, digest: bytes) -> int | None:
        """The block of this name, held or free; it is not held by looking."""
        return self._named.get(digest)

    def keep(self, digest: bytes, logprobs: KeptLogprobs) -> None:
        """Let `kept` answer these for the block of this name, unless it has more alternatives already."""
        block = self._named[digest]
        if block not in self._kept or self._kept[block].num_top < logprobs.num_top:
            self._kept[block] = logprobs

    def kept(self, block: int) -> KeptLogprobs | None:
        return self._kept.get(block)

    def _forget_name(self, block: int) -> None:
        self._kept.pop(block, None)
        name = self._names[block]
        if name is not None:
            del self._named[name]
            self._names[block] = None
