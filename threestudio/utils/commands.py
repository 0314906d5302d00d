"""How commands beside launch.py end: `python -m ...` of one thing, without a trial."""

from __future__ import annotations

import sys
from collections.abc import Callable

from threestudio.utils.errors import UserError
from threestudio.utils.stopping import STOPPED_EXIT_CODE

USER_ERROR_EXIT_CODE = 2  # as argparse's


def exit_code_of(work: Callable[[], None]) -> int:
    """Does a command's work: 0. What the user can mend, or a stop by hand, is one line on stderr and another code."""
    try:
        work()
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("Stopped by hand.", file=sys.stderr)
        return STOPPED_EXIT_CODE
    return 0
