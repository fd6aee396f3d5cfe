"""Log-probabilities of the tokens of one cached block, packed, so that a prompt whose beginning is cached is scored
without being computed again.

They depend on the same tokens as the block's name does, so they live and go with it. That bounds them: at most
`MAX_KEPT_TOP` alternatives a token, 8 bytes each, beside keys and values of some kilobytes.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from polyserve.request import TokenLogprob

MAX_KEPT_TOP = 20  # alternatives a token; prompts that are scored with more are computed each time


@dataclass(frozen=True, slots=True)
class KeptLogprobs:
    num_top: int
    token_ids: "array[int]"
    logprobs: "array[float]"  # float32, as the head gave them; 0 for a prompt's first token, which has none
    top_ids: "array[int]"
    top_logprobs: "array[float]"

    @staticmethod
    def of(entries: Sequence[TokenLogprob | None], first_token: int, *, num_top: int) -> "KeptLogprobs":
        """first_token: stands where an entry is None."""
        known = [entry or TokenLogprob(first_token, 0.0, [0] * num_top, [0.0] * num_top) for entry in entries]
        return KeptLogprobs(
            num_top,
            array("i", [entry.token_id for entry in known]),
            array("f", [entry.logprob for entry in known]),
            array("i", [token_id for entry in known for token_id in entry.top_ids]),
            array("f", [logprob for entry in known for logprob in entry.top_logprobs]),
        )

    def entries(self, num_top: int) -> list[TokenLogprob]:
        """With as many alternatives, at most those that are kept."""
        return [
            TokenLogprob(
                token_id,
                logprob,
                self.top_ids[i * self.num_top : i * self.num_top + num_top].tolist(),
                self.top_logprobs[i * self.num_top : i * self.num_top + num_top].tolist(),
            )
            for i, (token_id, logprob) in enumerate(zip(self.token_ids, self.logprobs, strict=True))
        ]
