"""Clients of model providers that cannot overspend.

    client = OpenAI(http_client=guarded(openai.DefaultHttpxClient))
    client = AsyncAnthropic(http_client=guarded(anthropic.DefaultAsyncHttpxClient))
    client = genai.Client(http_options=HttpOptions(httpx_client=guarded(httpx.Client)))

Each call, a retry of the SDK's own included, is admitted at its model's price before it is
sent and settled when its answer ends. It is charged to the innermost `guard.call` or `charge`
block, else to the request that is being handled. One that is refused raises `BudgetExceeded`.
`Retries`, `Pace` and `fallback` are what else such calls may need; `Retries` takes the package
tenacity, which the extra `clients` installs.
"""

from typing import TYPE_CHECKING, Any

from llm_budget_mw.clients.construction import guarded
from llm_budget_mw.clients.fallbacks import Chosen, Tried, fallback, fallback_async
from llm_budget_mw.clients.pace import AsyncPace, Pace, PaceExceeded
from llm_budget_mw.clients.recent import UpstreamLimit

if TYPE_CHECKING:
    from llm_budget_mw.clients.retries import Retries

__all__ = [
    "AsyncPace",
    "Chosen",
    "Pace",
    "PaceExceeded",
    "Retries",
    "Tried",
    "UpstreamLimit",
    "fallback",
    "fallback_async",
    "guarded",
]


def __getattr__(name: str) -> Any:
    if name == "Retries":
        from llm_budget_mw.clients.retries import Retries

        return Retries
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
