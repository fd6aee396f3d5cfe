"""Gives a sequence the blocks its tokens need, and lets it begin with blocks that somebody else has computed.

prefix hit   full blocks, found by name, are held as they are. At least one token is left to compute, so that there is
             something to sample from. A prompt that is scored begins with blocks whose log-probabilities are kept; the
             last of these is computed again, since the token after it is predicted there.
fork         a later choice of a request holds the prompt's blocks of an earlier one up to the last prompt token, which
             it computes itself, and a beam the blocks of the one it goes on from. The block where the first own token
             lies is copied, if anything before it lies there too.

Invariant    a block that is shared or has a name is never written: a sequence writes only at `num_computed` and after,
             and holds every block from there on alone. `admit` makes it true, and an assertion in `cover` watches it.
"""

from polyserve.engine.block_pool import BlockPool, digest_of, root_of
from polyserve.engine.kept_logprobs import MAX_KEPT_TOP, KeptLogprobs
from polyserve.engine.sequence import Sequence
from polyserve.request import TokenLogprob


class BlockManager:
    def __init__(self, *, num_blocks: int, block_size: int, enable_prefix_caching: bool, salt: bytes = b"") -> None:
        """`salt` says what else, besides the tokens, the keys and values depend on."""
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self._naming = enable_prefix_caching
        self._root = root_of(salt)

    def admit(
        self, seq: Sequence, *, donor: tuple[Sequence, int] | None, use_prefix: bool, num_spare: int
    ) -> list[tuple[int, int]] | None:
        """Give `seq`, which holds nothing, blocks for all its tokens, as many of them computed as can be shared.

        donor: a sequence that has stored so many tokens that `seq` begins with, but for its last.  num_spare: blocks to
        leave free for others.
        Returns the (source, destination) blocks to copy before anything is computed. Without room, returns None and
        changes nothing.
        """
        shared = self._find_prefix(seq) if use_prefix else []
        num_computed, source = len(shared) * self.block_size, None
        if donor is not None and donor[1] > num_computed:
            table, num_computed = donor[0].block_table, donor[1]
            num_full, num_beside = divmod(num_computed, self.block_size)
            shared = table[:num_full]
            source = table[num_full] if num_beside else None
        num_free = self.pool.num_free - sum(self.pool.num_holders(block) == 0 for block in shared)
        num_new = self._num_blocks_of(len(seq.tokens)) - len(shared)
        if num_new + num_spare > num_free:
            return None
        if seq.scores_prompt:
            seq.prompt_logprobs = self._kept_logprobs(seq, num_computed)
        for block in shared:
            self.pool.hold(block)
        seq.block_table = shared + [self.pool.take() for _ in range(num_new)]
        seq.num_computed, seq.num_named_blocks, seq.num_sent_blocks = num_computed, len(shared), 0
        return [] if source is None else [(source, seq.block_table[len(shared)])]

    def room_for_forks(self, prompt_len: int, num_forks: int) -> int:
        """How many tokens so many sequences can have after a prompt of which they share the full blocks, if each has a
        block to spare as well. Less than 1: none."""
        num_shared = (prompt_len - 1) // self.block_size
        num_own = (self.pool.num_blocks - num_shared) // num_forks - 1
        return (num_shared + num_own) * self.block_size - prompt_len

    def cover(self, seq: Sequence) -> bool:
        """Give `seq` blocks for tokens that came since it was admitted. With too few it changes nothing: False."""
        num_new = self._num_blocks_of(seq.length) - len(seq.block_table)
        if num_new > self.pool.num_free:
            return False
        seq.block_table += [self.pool.take() for _ in range(num_new)]
        written = seq.block_table[seq.num_computed // self.block_size]
        assert self.pool.num_holders(written) == 1, f"sequence {seq.seq_id} would write into a shared block"
        return True

    def name_computed(self, seq: Sequence, num_computed: int) -> None:
        """Let the full blocks among the first `num_computed` tokens of `seq` be found again."""
        if not self._naming:
            return
        num_full = num_computed // self.block_size
        for index in range(seq.num_named_blocks, num_full):
            self.pool.name(seq.block_table[index], self._digest(seq, index))
            self._keep_logprobs(seq, index)
        seq.num_named_blocks = max(seq.num_named_blocks, num_full)

    def release(self, seq: Sequence) -> None:
        """Let go of every block of `seq`, last first, so that of what it named the beginning is found longest."""
        for block in reversed(seq.block_table):
            self.pool.release(block)
        seq.block_table = []
        seq.num_computed = seq.num_named_blocks = seq.num_sent_blocks = 0
        seq.num_stored = 0

    def _find_prefix(self, seq: Sequence) -> list[int]:
        """Blocks that already store the beginning of `seq`, as many as there are, short of its last token."""
        blocks: list[int] = []
        if not self._naming:
            return blocks
        for index in range((len(seq.tokens) - 1) // self.block_size):
            block = self.pool.find(self._digest(seq, index))
            if block is None:
                break
            blocks.append(block)
        if not seq.scores_prompt:
            return blocks
        num_scored = next((i for i, block in enumerate(blocks) if not self._has_logprobs(seq, block)), len(blocks))
        return blocks[: max(0, num_scored - 1)]

    def _has_logprobs(self, seq: Sequence, block: int) -> bool:
        kept = self.pool.kept(block)
        return kept is not None and kept.num_top >= (seq.params.prompt_logprobs or 0)

    def _keep_logprobs(self, seq: Sequence, index: int) -> None:
        """Keep what is known of the tokens of full block `index`, which was just named."""
        end, num_top = (index + 1) * self.block_size, seq.params.prompt_logprobs or 0
        entries = seq.prompt_logprobs
        if entries is not None and end <= min(len(entries), seq.prompt_len) and num_top <= MAX_KEPT_TOP:
            kept = KeptLogprobs.of(entries[end - self.block_size : end], seq.tokens[0], num_top=num_top)
            self.pool.keep(self._digest(seq, index), kept)

    def _kept_logprobs(self, seq: Sequence, num_computed: int) -> list[TokenLogprob | None]:
        """Entries for the tokens of the blocks that `seq` begins with, and for the one after: the rest comes with what
        is computed."""
        entries: list[TokenLogprob | None] = [None]
        for index in range(num_computed // self.block_size + bool(num_computed)):
            block = self.pool.find(self._digest(seq, index))
            kept = None if block is None else self.pool.kept(block)
            assert kept is not None, f"sequence {seq.seq_id} begins with a block that was not scored"
            entries[index * self.block_size :] = kept.entries(seq.params.prompt_logprobs or 0)
        return [None, *entries[1 : num_computed + 1]]

    def _digest(self, seq: Sequence, index: int) -> bytes:
        """The name of full block `index` of `seq`; each is computed once."""
        while len(seq.digests) <= index:
            start = len(seq.digests) * self.block_size
            parent = seq.digests[-1] if seq.digests else self._root_for(seq.params.cache_salt)
            seq.digests.append(digest_of(seq.tokens[start : start + self.block_size], parent=parent))
        return seq.digests[index]

    def _root_for(self, salt: str | None) -> bytes:
        """What the names of a sequence grow from: sequences with different salts share none."""
        return self._root if salt is None else root_of(self._root + salt.encode())

    def _num_blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
