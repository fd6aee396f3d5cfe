"""How many tokens a step may compute beside sequences that decode, so that their next token comes in time.

A step's time grows with its tokens, and with contexts, machine and company, so it is learned from the steps themselves:
from n tokens in t seconds, the next step may have n * limit / t. Chunking changes no bits, so nobody's answer shows it.
"""

FIRST_BUDGET = 64  # tokens, while nothing is known
MAX_GROWTH = 2.0  # from one step to the next
INFORMATIVE_SHARE = 0.5  # of the budget: a smaller step says little about a full one


class Pace:
    """The budget of one engine."""

    def __init__(self, max_step_s: float, max_tokens: int) -> None:
        self._max_step_s = max_step_s
        self._max_tokens = max_tokens
        self._budget = float(min(FIRST_BUDGET, max_tokens))

    @property
    def num_tokens(self) -> int:
        """For the next step."""
        return max(1, min(round(self._budget), self._max_tokens))

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A step computed so many tokens in this time."""
        if num_tokens < INFORMATIVE_SHARE * self._budget and seconds <= self._max_step_s:
            return
        fitting = num_tokens * self._max_step_s / max(seconds, 1e-6)
        self._budget = min(max(fitting, 1.0), MAX_GROWTH * self._budget, self._max_tokens)
