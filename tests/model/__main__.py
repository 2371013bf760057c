"""``python -m tests.model [DEFENCE ...]``: the model without some defences, and the attacks that it finds."""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.checker import check
from tests.model.protocol import Defence


def main() -> int:
    """Check, and print each attack with its trace. Exits with 1 when there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    names = ", ".join(defence.name for defence in Defence)
    parser.add_argument("without", nargs="*", type=Defence.__getitem__, metavar="DEFENCE", help=names)
    given = parser.parse_args()
    began = time.process_time()
    found = check(without=frozenset(given.without))
    for attack in found.attacks.values():
        print(attack)
    print(f"{found.states} states, {len(found.attacks)} promises broken, {time.process_time() - began:.1f} s of CPU")
    return 1 if found.attacks else 0


if __name__ == "__main__":
    sys.exit(main())
