"""What steps take, next to what their bytes and operations predict.

bytes        the weights once, and each sequence's keys and values
operations   two for each weight of a layer and token, those of attention, and the head's for each sequence that samples
predicted    the longer of the two, at the best rates that this engine has shown: at best one hides behind the other
So no machine has to be measured, and what lies between measured and predicted is what something else took: company on
the machine, shapes that kernels are worse at. Layers with windows are counted as if they saw everything.
"""

from polyserve.engine.step import Step
from polyserve.model.config import ModelConfig

ELEMENT_BYTES = 2  # of weights: of another size, the rate is that of another unit, and the prediction the same


class StepMeter:
    """Sums since the start."""

    def __init__(self, config: ModelConfig, *, kv_bytes_per_token: float) -> None:
        self._layer_weights = config.num_layers * config.layer_weights
        self._head_weights = config.vocab_size * config.hidden_size
        self._kv_bytes_per_token = kv_bytes_per_token
        self._pair_operations = 4 * config.num_layers * config.num_heads * config.head_size
        self._best_bytes_per_s = self._best_operations_per_s = 0.0
        self.num_steps = self.num_tokens = 0
        self.seconds = self.predicted_seconds = 0.0

    def note(self, step: Step, seconds: float) -> None:
        """A step took so long."""
        num_bytes, operations = self._needs(step)
        self._best_bytes_per_s = max(self._best_bytes_per_s, num_bytes / seconds)
        self._best_operations_per_s = max(self._best_operations_per_s, operations / seconds)
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.seconds += seconds
        self.predicted_seconds += max(num_bytes / self._best_bytes_per_s, operations / self._best_operations_per_s)

    def _needs(self, step: Step) -> tuple[float, float]:
        """Bytes and operations."""
        num_bytes = float(ELEMENT_BYTES * (self._layer_weights + self._head_weights))
        operations = 0.0
        for chunk in step.chunks:
            end = chunk.start + chunk.num_tokens
            num_bytes += self._kv_bytes_per_token * end
            pairs = chunk.num_tokens * (chunk.start + end + 1) / 2  # of a token and one that it sees
            operations += 2 * chunk.num_tokens * self._layer_weights + self._pair_operations * pairs
            operations += 2 * self._head_weights * chunk.samples
        return num_bytes, operations
