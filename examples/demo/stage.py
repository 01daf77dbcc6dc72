"""What the scenes play on: users with a credential, a provider with bills, the counters."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from openai import APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from examples.demo import servers
from llm_budget_mw import AsyncGuard, Principal, load
from llm_budget_mw.testing import FakeProvider, Issuer, ProviderCall

Chunks = AsyncStream[ChatCompletionChunk]

CONFIG = Path(__file__).with_name("llm_budget.toml")
PROVIDER_PRICES = {"gpt-4o": ("2.50", "10.00"), "gpt-4o-mini": ("0.15", "0.60")}
QUESTION = "Tell me about foxes."
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]

_POLL_S, _POLLS = 0.02, 700


class Account(NamedTuple):
    """What the counters say of one user; money in nano-dollars."""

    spent: int
    """Charged, and held by calls that are running."""
    remaining: int
    running: int
    """Calls that hold a reservation."""


class Books:
    """The counters, read past the application."""

    def __init__(self, guard: AsyncGuard) -> None:
        self._guard = guard

    async def of(self, principal: Principal) -> Account:
        """Read a user's counters."""
        statuses = await self._guard.limits(principal)
        limits = {status.limit.resource: status for status in statuses}
        money, slots = limits["cost"], limits["concurrency"]
        return Account(money.used, money.remaining, slots.used)


class User:
    """A user with a credential of a tier, who calls with OpenAI's own SDK."""

    def __init__(self, name: str, tier: str, client: AsyncOpenAI, stage: Stage) -> None:
        self.name = name
        self._principal = Principal(name, tier=tier)
        self._completions = client.chat.completions
        self._stage = stage

    async def ask(self, max_tokens: int) -> ChatCompletion:
        """Ask for an answer of at most this length; a refusal is an SDK's error."""
        return await self._completions.create(
            model="gpt-4o", messages=ASKED, max_completion_tokens=max_tokens, user=self.name
        )

    async def stream(self, max_tokens: int) -> Chunks:
        """Ask for the same in chunks."""
        return await self._completions.create(
            model="gpt-4o",
            messages=ASKED,
            max_completion_tokens=max_tokens,
            user=self.name,
            stream=True,
        )

    async def status_of(self, max_tokens: int) -> int:
        """Ask, and return the status of the answer, whatever it is."""
        try:
            await self.ask(max_tokens)
        except APIStatusError as error:
            return error.status_code
        return 200

    @property
    def calls(self) -> list[ProviderCall]:
        """The user's calls as the provider saw them."""
        calls = self._stage.provider.calls
        return [call for call in calls if call.request.get("user") == self.name]

    @property
    def granted(self) -> int | None:
        """The bound under which the last of them came to the provider."""
        return self.calls[-1].max_tokens if self.calls else None

    @property
    def billed(self) -> int:
        """What the provider bills for all of them, in nano-dollars."""
        return sum(call.cost_nano for call in self.calls)

    async def has_called(self) -> bool:
        """Return whether one of them has reached the provider."""
        return bool(self.calls)

    async def account(self) -> Account:
        """Read the user's counters."""
        return await self._stage.books.of(self._principal)

    async def has_settled(self) -> bool:
        """Return whether they say what the provider bills."""
        account = await self.account()
        return not account.running and account.spent == self.billed

    async def settled(self) -> Account:
        """Read them once nothing is held: an answer arrives just before its settlement."""

        async def is_idle() -> bool:
            return not (await self.account()).running

        await until(is_idle)
        return await self.account()


class Stage:
    """Everything that runs while the scenes are played."""

    def __init__(
        self,
        provider: FakeProvider,
        valkey: servers.Valkey,
        books: Books,
        sign_in: Callable[[str, str], AsyncOpenAI],
        environment: Mapping[str, str],
        directory: Path,
        expected_upstream: int,
    ) -> None:
        self.provider = provider
        self.valkey = valkey
        self.books = books
        self.expected_upstream = expected_upstream
        """How many of fifty calls should reach the provider."""
        self._sign_in = sign_in
        self._environment = environment
        self._directory = directory

    def user(self, name: str, tier: str = "default") -> User:
        """Return a user of a tier."""
        return User(name, tier, self._sign_in(name, tier), self)

    def answers(self, output_tokens: int, *, delay_s: float = 0.0) -> None:
        """Let the provider answer like this from now on."""
        self.provider.output_tokens, self.provider.delay_s = output_tokens, delay_s

    def worker(self, user: User) -> AbstractContextManager[Popen[bytes]]:
        """Start a worker that calls for a user."""
        arguments = ["examples.demo.worker", user.name, QUESTION]
        return servers.running(arguments, self._environment, self._directory / "worker.log")


@asynccontextmanager
async def open_stage(expected_upstream: int) -> AsyncGenerator[Stage]:
    """Start everything, and stop it in the end, whatever the end is."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmb-")))
        issuer = Issuer(issuer="https://login.example", audience="chat")
        provider = FakeProvider(prices=PROVIDER_PRICES)
        valkey = stack.enter_context(servers.Valkey(directory))
        environment = {
            "LLM_BUDGET_STORE_URL": valkey.url,
            "LLM_BUDGET_JWT_KEY": issuer.key,
            "OPENAI_API_KEY": "unused",
            "OPENAI_BASE_URL": stack.enter_context(servers.served(provider)) + "/v1",
        }
        log = directory / "app.log"
        address = await stack.enter_async_context(servers.application(environment, log))
        guard = AsyncGuard.open(
            load(CONFIG, store={"url": valkey.url}, jwt={"key": issuer.key}), sinks=()
        )
        stack.push_async_callback(guard.close)
        client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        await stack.enter_async_context(client)

        def sign_in(name: str, tier: str) -> AsyncOpenAI:
            return client.with_options(api_key=issuer.token(name, scope="llm:call", tier=tier))

        yield Stage(
            provider, valkey, Books(guard), sign_in, environment, directory, expected_upstream
        )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something to become true; whoever asked finds out if it did not."""
    for _ in range(_POLLS):
        if await condition():
            return
        await asyncio.sleep(_POLL_S)


async def words_of(stream: Chunks, leave_after: int = 0) -> int:
    """Read a stream and return the number of words; after so many of them, hang up."""
    words = 0
    async with stream:
        async for chunk in stream:
            words += bool(chunk.choices and chunk.choices[0].delta.content)
            if words == leave_after > 0:
                break
    return words
