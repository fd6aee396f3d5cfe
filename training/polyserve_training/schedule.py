"""The learning rate of each step, a pure function of its number.   s step, from 0   W warm-up   N steps in all

warm-up   in a straight line from `warmup_from` (the step before the first) to the peak, which step W - 1 has
cosine    from the peak down to final * peak at the step `decay_steps`, then level     https://arxiv.org/abs/1608.03983
wsd       warm-up, stable, decay: level, then over the last `decay_steps` down to final * peak by 1 - sqrt, which keeps
          more of what a long plateau learned than a straight line     https://arxiv.org/abs/2405.18392
"""

import math

from polyserve_training.config import ScheduleRecipe


def learning_rate(step: int, *, peak: float, num_steps: int, schedule: ScheduleRecipe) -> float:
    if step < schedule.warmup_steps:
        return schedule.warmup_from + (peak - schedule.warmup_from) * (step + 1) / schedule.warmup_steps
    floor = schedule.final * peak
    if schedule.kind == "cosine":
        end = num_steps if schedule.decay_steps is None else schedule.decay_steps
        done = (step - schedule.warmup_steps) / max(end - 1 - schedule.warmup_steps, 1)
        return floor + (peak - floor) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    length = max(num_steps // 10, 1) if schedule.decay_steps is None else schedule.decay_steps
    done = (step + 1 - (num_steps - length)) / length
    return peak - (peak - floor) * math.sqrt(max(done, 0.0))
