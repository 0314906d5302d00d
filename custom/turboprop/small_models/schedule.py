"""Learning rates that need not know when a training ends."""


def warmup_stable_decay(step: int, steps: int, peak: float, warmup: int, cooldown: int) -> float:
    """The learning rate of a step (counted from 0): a linear rise, a plateau, and a linear fall to nothing.

    The plateau has no length of its own, so a training that goes well can be given more steps later: it goes on
    from the checkpoint before its fall (Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4; the linear fall is
    that of Haegele et al. 2024, arXiv 2405.18392).
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = min(1.0, (steps - step) / max(1, cooldown))
    return peak * min(rise, fall)
