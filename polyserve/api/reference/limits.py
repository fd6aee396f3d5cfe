"""The chapter on limits, from `polyserve.api.limits` and SamplingParams."""

import dataclasses

from polyserve.api.limits import Limits
from polyserve.api.reference.tables import table
from polyserve.config import ServerConfig
from polyserve.sampling_params import BIAS, RANGES


def limits_chapter() -> str:
    """What an operator sets, and what holds everywhere."""
    fields = [*dataclasses.fields(Limits), *(f for f in dataclasses.fields(ServerConfig) if f.name == "max_logprobs")]
    flags = [[f"`--{field.name.replace('_', '-')}`", str(field.default), field.metadata["help"]] for field in fields]
    ranges = [[f"`{name}`", str(limit)] for name, limit in [*RANGES.items(), ("logit_bias", BIAS)]]
    return "\n".join(
        (
            "## Limits\n",
            "The same over HTTP and gRPC, checked before anything is tokenised; flags of `polyserve serve`.\n",
            table(("flag", "default", "limits"), flags),
            "What no request may exceed anywhere, also in Python:\n",
            table(("field", "range"), ranges),
        )
    )
