"""How long an evolution may take, as people write it: one definition for the command line and for HTTP."""

import re

from models.errors import InvalidConfig

UNITS = {"s": 1, "m": 60, "h": 3600}
MAX_BUDGET_S = 7 * 24 * 3600
DEFAULT_BUDGET = "5m"


def parse_budget(text: str) -> float:
    """Return the seconds that `90s`, `5m` or `1.5h` stand for.

    Raises:
        InvalidConfig: nothing of the kind, or no time at all, or more than a week.
    """
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smh])", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_BUDGET_S:
        raise InvalidConfig(f"the budget {text[:80]!r} is no time: write 90s, 5m or 1.5h, at most {MAX_BUDGET_S}s")
    return seconds
