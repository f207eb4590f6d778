"""``./run chaos``: break things on purpose, count what was lost, print a table.

Exit code 0 if every promise held, 1 if one was broken, 2 if there is no such scenario.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.row import Row, added, table
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.world import Plan

WITHIN = "begin no further round after so long, and account for those that there were"
ADD = "keep the rows here too, and print them added to those that are there from earlier runs"


def main() -> int:
    """Run what is asked for, and print each row as it comes, then the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, too
    arguments = _arguments()
    unknown = sorted(set(arguments.names) - set(SCENARIOS))
    if unknown:
        print(f"no scenario {', '.join(unknown)} among: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    names = arguments.names or SCENARIOS
    try:
        chosen = {name: _chosen(SCENARIOS[name], arguments) for name in names}
    except ValueError as error:
        print(f"{', '.join(names)} {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        until = began + arguments.within
        for row in _rows(name, chosen[name], seed=arguments.seed, until=until):
            print(f"\n{table([row])}", flush=True)
            rows.append(row)
            if arguments.add is not None:
                with arguments.add.open("a") as file:
                    file.write(json.dumps(vars(row)) + "\n")
        print(f"\n{name}: {time.monotonic() - began:.0f} s", flush=True)
    if arguments.add is not None:
        rows = added(Row(**json.loads(line)) for line in arguments.add.read_text().splitlines())
    broken = [row.scenario for row in rows if not row.held]
    print(f"\n{table(rows)}\n")
    print(f"broken: {', '.join(broken)}" if broken else f"all {len(rows)} held")
    if arguments.markdown is not None:
        arguments.markdown.write_text(_page(rows))
    return 1 if broken else 0


def _chosen(scenario: Scenario, arguments: argparse.Namespace) -> dict[str, Any]:
    return scenario.arguments(
        quick=arguments.quick, times=arguments.times, parts=arguments.part or ()
    )


def _rows(name: str, chosen: Mapping[str, Any], *, seed: int, until: float) -> Iterator[Row]:
    """A scenario's rows; what it raises is a broken promise as well."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        plan = Plan(folder=Path(folder), seed=seed, say=_say, until=until)
        try:
            yield from SCENARIOS[name].run(plan, **chosen)
        except Exception:  # noqa: BLE001 - it goes into the table, and the next scenario runs
            traceback.print_exc()
            yield Row(scenario=name, did="ended before its time", times=1, broken={"errors": 1})


def _say(text: str) -> None:
    print(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _page(rows: list[Row]) -> str:
    command = " ".join(["./run chaos", *sys.argv[1:]])
    return f"# chaos, {dt.datetime.now(dt.UTC):%Y-%m-%d}\n\n`{command}`\n\n{table(rows)}\n"


def _arguments() -> argparse.Namespace:
    listed = "\n".join(
        f"  {name:12} {one.about}" + (f"; parts: {', '.join(one.parts)}" if one.parts else "")
        for name, one in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="./run chaos",
        description=f"Break things on purpose and count what was lost.\n\nscenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios; all, if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer of everything: minutes")
    parser.add_argument("--times", type=int, metavar="N", help="how often, instead of as planned")
    parser.add_argument("--within", type=float, default=math.inf, metavar="SECONDS", help=WITHIN)
    parser.add_argument("--part", action="append", help="only this part; may be repeated")
    parser.add_argument("--add", type=Path, metavar="PATH", help=ADD)
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of the random moments")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the table here too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
