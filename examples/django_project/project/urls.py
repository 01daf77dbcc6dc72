"""Budgets in Django: one view in the provider's format, one in a format of our own.

export LLM_BUDGET_JWT_KEY=... OPENAI_API_KEY=...
uvicorn --app-dir examples/django_project project.asgi:application
"""

import json
import os
from collections.abc import AsyncIterator

import httpx2
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from llm_budget_mw import current_budget
from llm_budget_mw_django import guard

provider = httpx2.AsyncClient(
    base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com"),
    headers={"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"},
    timeout=600,
)


async def chat(request: HttpRequest) -> StreamingHttpResponse:
    """Pass a call on; its body already says which model and how much output is granted."""
    call = provider.build_request(
        "POST",
        "/v1/chat/completions",
        content=request.body,
        headers={"content-type": "application/json", "accept-encoding": "identity"},
    )
    answer = await provider.send(call, stream=True)
    return StreamingHttpResponse(
        relay(answer), status=answer.status_code, content_type=answer.headers.get("content-type")
    )


async def relay(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


@guard(feature="titles", model="gpt-4o-mini", input_tokens=4000, max_tokens=30)
async def title(request: HttpRequest) -> JsonResponse:
    """Call a model ourselves; the call draws on what the request has reserved."""
    budget = current_budget()
    messages = [
        {"role": "system", "content": "Find a title for the text."},
        {"role": "user", "content": json.loads(request.body)["text"]},
    ]
    async with budget.call(
        model=budget.model, messages=messages, max_tokens=budget.max_tokens
    ) as call:
        answer = await provider.post("/v1/chat/completions", json=call.request)
        answer.raise_for_status()
        call.record(answer.json())
    content = answer.json()["choices"][0]["message"]["content"]
    spent = call.settlement.charges.cost_nano if call.settlement else 0
    return JsonResponse({"title": content, "micro_dollars": spent // 1000})


urlpatterns = [path("v1/chat/completions", chat), path("titles", title)]
