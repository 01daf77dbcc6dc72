"""Every telemetry name in one place, because the conventions still move.

`gen_ai.*` attributes are those of the OpenTelemetry GenAI conventions (Development status);
the metrics carry our own prefix, so that they are not added to the ones an instrumented SDK
reports for the same call. No metric carries a user: its cardinality has no bound.
"""

METER = "llm_budget_mw"

CALLS = "llm_budget.calls"
REFUSALS = "llm_budget.refusals"
UNCHECKED = "llm_budget.unchecked"
TOKENS = "llm_budget.tokens"
COST_USD = "llm_budget.cost.usd"
OVERRUNS = "llm_budget.overruns"
DURATION = "llm_budget.call.duration"

MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
SIDE = "gen_ai.token.type"

PRINCIPAL = "enduser.pseudo.id"
DECISION = "llm_budget.decision"
REASON = "llm_budget.reason"
LIMIT = "llm_budget.limit"
GRADE = "llm_budget.usage_source"
ENDING = "llm_budget.ending"
FEATURE = "llm_budget.feature"
RESERVATION = "llm_budget.reservation"
RESERVED_TOKENS = "llm_budget.reserved_tokens"
SPAN_COST_USD = "llm_budget.cost.usd"
