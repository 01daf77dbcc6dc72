"""The eight scenes. Every figure that is shown is compared with one that was known before.

Money is in nano-dollars, prices in nano-dollars a token as in `llm_budget.toml`. The provider
counts a token for each word of the question; the middleware, which has to be right before it
knows, holds one for each byte.
"""

from __future__ import annotations

import asyncio
import signal

from openai.types.chat import ChatCompletion

from examples.demo.board import Line
from examples.demo.stage import QUESTION, Account, Stage, until, words_of

DOLLAR, CENT = 1_000_000_000, 10_000_000
INPUT, OUTPUT = 2_500, 10_000
MINI_INPUT, MINI_OUTPUT = 150, 600

SENT = 3 + 4 + len(QUESTION.split())
"""Input tokens of the question as the provider bills them."""
BOUND = 3 + 4 + 16 + len(QUESTION)
"""The same as they are held: what the format and the provider add, and the bytes."""
COUNTED = BOUND - len(QUESTION) + 6
"""The same where only the tokenizer can tell: the question is six tokens of its model."""


async def normal_call(stage: Stage, line: Line) -> None:
    """Hold the most a call may cost, charge what it did."""
    alice = stage.user("alice")
    stage.answers(60)
    line.tell("asked", "100 tokens")

    answer = await alice.ask(100)

    line.check("answer", "{granted} granted", granted=(alice.granted, 100))
    check_used(line, answer, 60)
    check_books(line, await alice.settled(), SENT * INPUT + 60 * OUTPUT, budget=DOLLAR)


async def streamed_call(stage: Stage, line: Line) -> None:
    """Do the same with a stream, though its caller does not ask for the usage."""
    bob = stage.user("bob")
    stage.answers(60, delay_s=0.005)
    line.tell("asked", "100 tokens, streamed")

    words = await words_of(await bob.stream(100))

    line.check("answer", "{granted} granted", granted=(bob.granted, 100))
    line.check("used", "{words} out, one by one", words=(words, 60))
    check_books(line, await bob.settled(), SENT * INPUT + 60 * OUTPUT, budget=DOLLAR)


async def fifty_at_once(stage: Stage, line: Line) -> None:
    """Let exactly three of fifty through, in whatever order they come."""
    carol = stage.user("carol", "three-calls")
    stage.answers(200, delay_s=0.002)
    line.tell("asked", "50 x 200 tokens")

    statuses = await asyncio.gather(*(carol.status_of(200) for _ in range(50)))

    line.check("answer", "{refused} refused (429)", refused=(statuses.count(429), 47))
    upstream = (len(carol.calls), stage.expected_upstream)
    line.check("used", "{upstream} reached the provider", upstream=upstream)
    charged = 3 * (SENT * INPUT + 200 * OUTPUT)
    check_books(line, await carol.settled(), charged, budget=7 * DOLLAR // 1000)


async def shorter_answer(stage: Stage, line: Line) -> None:
    """Give a user just under the limit what is left, instead of an error."""
    dave = stage.user("dave", "cent")
    stage.answers(600)
    await dave.ask(600)
    before = SENT * INPUT + 600 * OUTPUT
    line.tell("asked", "1000 tokens")

    answer = await dave.ask(1000)

    left = (CENT - before - BOUND * INPUT) // OUTPUT
    reason = (answer.choices[0].finish_reason, "length")
    line.check("answer", "{granted} granted, {reason}", granted=(dave.granted, left), reason=reason)
    check_used(line, answer, left)
    charged = SENT * INPUT + left * OUTPUT
    check_books(line, await dave.settled(), charged, budget=CENT, before=before)


async def cheaper_model(stage: Stage, line: Line) -> None:
    """Keep the dear model for the first 80 % of the budget."""
    erin = stage.user("erin", "thrifty")
    stage.answers(750)
    await erin.ask(750)
    before = SENT * INPUT + 750 * OUTPUT
    line.tell("asked", "300 tokens of gpt-4o")

    answer = await erin.ask(300)

    model = (erin.calls[-1].model, "gpt-4o-mini")
    line.check("answer", "{granted} of {model}", granted=(erin.granted, 300), model=model)
    check_used(line, answer, 300)
    charged = SENT * MINI_INPUT + 300 * MINI_OUTPUT
    check_books(line, await erin.settled(), charged, budget=CENT, before=before)


async def client_hangs_up(stage: Stage, line: Line) -> None:
    """Charge what was streamed until then, and the input; free the user's only slot."""
    frank = stage.user("frank", "one-at-a-time")
    stage.answers(400, delay_s=0.01)
    line.tell("asked", "400 tokens, streamed")

    words = await words_of(await frank.stream(400), leave_after=5)
    account = await frank.settled()
    made = frank.calls[-1].output_tokens
    stage.answers(1)
    after = await frank.status_of(1)

    line.check("answer", "{read} read; next call {after}", read=(words, 5), after=(after, 200))
    line.check("used", "{made} generated", made=within(5, made, 399))
    # Counted from the text that passed: at least what was read, at most what was made.
    counted = (account.spent - COUNTED * INPUT) // OUTPUT
    charged = COUNTED * INPUT + within(words, counted, made)[1] * OUTPUT
    check_books(line, account, charged, budget=DOLLAR)


async def worker_killed(stage: Stage, line: Line) -> None:
    """Charge a call that nobody will settle, and free its slot, once its lease is over."""
    grace = stage.user("grace", "one-at-a-time")
    stage.answers(100, delay_s=0.05)
    line.tell("asked", "100 tokens")

    with stage.worker(grace) as worker:
        await until(grace.has_called)
        busy = await grace.status_of(1)
        worker.kill()
        ended = worker.wait()
    line.tell("answer", "its lease runs out")
    account = await grace.settled()
    stage.answers(1)
    after = await grace.status_of(1)

    line.check("answer", "other call {busy}, later {after}", busy=(busy, 429), after=(after, 200))
    line.check("used", "unknown, killed by {signal}", signal=(-ended, int(signal.SIGKILL)))
    check_books(line, account, BOUND * INPUT + 100 * OUTPUT, budget=DOLLAR)


async def redis_restarted(stage: Stage, line: Line) -> None:
    """Go on by the outage rule without Redis; have the books right when it is back."""
    heidi, otto = stage.user("heidi", "local-share"), stage.user("otto", "no-money")
    stage.answers(300, delay_s=0.002)
    line.tell("asked", "5 x 300 tokens, 4 without Redis")

    stream = await heidi.stream(300)
    stage.valkey.stop()
    await words_of(stream)
    stage.answers(300)
    statuses = [await heidi.status_of(300) for _ in range(4)]
    others = await otto.status_of(300)
    stage.valkey.start()

    async def delivered() -> bool:
        # The application finds out with the first call that Redis is back.
        await otto.status_of(1)
        return await heidi.has_settled()

    await until(delivered)
    answers = [(statuses.count(status), 2) for status in (200, 503)]
    text = "{local} local, {refused} refused; no budget {others}"
    line.check("answer", text, local=answers[0], refused=answers[1], others=(others, 200))
    billed = 3 * (SENT * INPUT + 300 * OUTPUT)
    line.check("used", "{billed} billed", billed=(usd(heidi.billed), usd(billed)))
    check_books(line, await heidi.account(), billed, budget=14 * CENT)


SCENES = {
    "A call": normal_call,
    "A streamed call": streamed_call,
    "Fifty at once, money for three": fifty_at_once,
    "Just under the limit: a shorter answer": shorter_answer,
    "Beyond 80 %: the cheaper model": cheaper_model,
    "The client hangs up in mid-stream": client_hangs_up,
    "A worker is killed": worker_killed,
    "Redis is stopped and started": redis_restarted,
}


def check_used(line: Line, answer: ChatCompletion, output: int) -> None:
    """Check what the answer says of its usage."""
    usage = answer.usage
    sent, made = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    line.check("used", "{sent} in, {made} out", sent=(sent, SENT), made=(made, output))


def check_books(
    line: Line, account: Account, charged: int, *, budget: int, before: int = 0
) -> None:
    """Check what the counters say, where `before` had been charged already."""
    line.check("charged", "{charged}", charged=(usd(account.spent - before), usd(charged)))
    remaining = budget - before - charged
    line.check("remains", "{remains}", remains=(usd(account.remaining), usd(remaining)))
    line.check("held", "{held}", held=(account.running, 0))


def within(least: int, found: int, most: int) -> tuple[int, int]:
    """Pair what was found with itself if it is in a range, else with the nearest that is."""
    return found, min(max(found, least), most)


def usd(nano: int) -> str:
    """Write money in dollars, exactly."""
    return f"${nano / DOLLAR:.9f}".rstrip("0")
