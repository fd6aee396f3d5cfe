"""Which request kills the engine: found by bisection among those that were in its step each time it died.

One death says nothing: anything can kill a process. A request with two strikes (`journal.py`) is a suspect. One suspect
alone is the culprit. Several are held back, and released by halves once everyone who goes on has got a token, so that
the next death is theirs alone: the older half of those with the most strikes first, because those that do no harm cost
no restart, and a culprit is mostly young.
"""

from polyserve.service.journal import Entry, Journal

SUSPICIOUS = 2  # strikes


def judge(journal: Journal, computing: set[str]) -> tuple[Entry | None, bool]:
    """After a death in a step of the requests `computing`: the culprit, if it is known, and whether it is nearer now.

    The culprit stays in the journal. Those that may go on are the ones that are not held.
    """
    for entry in journal:
        if entry.request.request_id in computing:
            entry.strikes += 1
    suspects = [entry for entry in journal if not entry.held and entry.strikes >= SUSPICIOUS]
    for entry in suspects:
        entry.held = True
    if len(suspects) != 1:
        release(journal)
        return None, bool(suspects)
    for entry in journal:  # found: the others most likely did no harm
        if entry.held:
            entry.held, entry.strikes = False, SUSPICIOUS - 1
    return suspects[0], True


def release(journal: Journal) -> list[Entry]:
    """Those that may go on as well from now on: none until everyone who went on has got a token since the death."""
    held = [entry for entry in journal if entry.held]
    if not held or any(entry.strikes for entry in journal if not entry.held):
        return []
    most = max(entry.strikes for entry in held)
    worst = [entry for entry in held if entry.strikes == most]
    following = worst[: (len(worst) + 1) // 2]
    for entry in following:
        entry.held = False
    return following
