"""Names of the features whose hidden input is reserved apart, the same for all providers.

A tier's `surcharges` says how many input tokens each of them is worth.
"""

from __future__ import annotations

WEB_SEARCH = "web_search"
WEB_FETCH = "web_fetch"
FILE_SEARCH = "file_search"
CODE_EXECUTION = "code_execution"
MCP = "mcp"
IMAGE_GENERATION = "image_generation"
COMPACTION = "compaction"
CONVERSATION = "conversation"
"""Earlier turns that the provider keeps and puts before the input."""
PROMPT_TEMPLATE = "prompt_template"
"""Input that is stored with the provider and named in the request."""
CACHED_CONTENT = "cached_content"
VIDEO = "video"
"""No header tells how long it is, and it costs by the second."""
SERVER_TOOL = "server_tool"
"""Any other tool that the provider runs by itself."""

CACHE_WRITE = "cache_write"
CACHE_WRITE_1H = "cache_write_1h"
"""No hidden tokens, but input that costs more than its plain price."""

_PREFIXES = {
    "web_search": WEB_SEARCH,
    "browser_search": WEB_SEARCH,
    "web_fetch": WEB_FETCH,
    "file_search": FILE_SEARCH,
    "code_execution": CODE_EXECUTION,
    "code_interpreter": CODE_EXECUTION,
    "image_generation": IMAGE_GENERATION,
    "mcp": MCP,
}


def of_tool(kind: str) -> str:
    """Return the feature for a server tool's `type`, such as `web_search_20260318`."""
    for prefix, feature in _PREFIXES.items():
        if kind.startswith(prefix):
            return feature
    return SERVER_TOOL
