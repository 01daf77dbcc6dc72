"""Play the scenes, show the table, and exit with 0 only if every figure is the expected one."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import openai

from examples.demo.board import Board, Line
from examples.demo.scenes import SCENES
from examples.demo.stage import Stage, open_stage
from llm_budget_mw import BudgetError

_PATIENCE_S = 25


async def play(stage: Stage, board: Board) -> None:
    """Play every scene of the board; one that cannot go on has failed."""
    for line in board.lines:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await SCENES[line.title](stage, line)
        except (openai.OpenAIError, BudgetError, TimeoutError) as error:
            line.problems.append(f"ended by {error!r}")
        board.ended(line)


async def main(options: argparse.Namespace) -> int:
    """Run the demo and return its exit status."""
    task = asyncio.current_task()
    if task is not None:
        # As with Ctrl-C: nothing that was started is left behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    lines = [Line(number, title) for number, title in enumerate(SCENES, start=1)]
    board = Board([line for line in lines if not options.scenes or line.number in options.scenes])
    with board:
        async with open_stage(options.expect_upstream) as stage:
            await play(stage, board)
    print(board.summary)
    return 0 if all(line.as_expected for line in board.lines) else 1


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "--scene",
        dest="scenes",
        action="append",
        type=int,
        choices=range(1, len(SCENES) + 1),
        help="play this one only, or several; without it all",
    )
    parser.add_argument(
        "--expect-upstream",
        type=int,
        default=3,
        metavar="N",
        help="calls of scene 3 that should reach the provider; any number but 3 is wrong, and "
        "shows that the demo can fail",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(read_arguments())))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("stopped")
