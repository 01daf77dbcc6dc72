"""Clients of model providers that cannot overspend.

    client = OpenAI(http_client=guarded(openai.DefaultHttpxClient))
    client = AsyncAnthropic(http_client=guarded(anthropic.DefaultAsyncHttpxClient))
    client = genai.Client(http_options=HttpOptions(httpx_client=guarded(httpx.Client)))

Each call, a retry of the SDK's own included, is admitted at its model's price before it is
sent and settled when its answer ends. It is charged to the innermost `guard.call` or `charge`
block, else to the request that is being handled. One that is refused raises `BudgetExceeded`.
"""

from llm_budget_mw.clients.construction import guarded

__all__ = ["guarded"]
