"""What a model reads of a Converse request; Nova takes the same messages without Converse."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._json import is_array, is_object, table
from llm_budget_mw.dialects._prompt import MediaKind, PromptBuilder
from llm_budget_mw.errors import RequestError

_PRIMING_TOKENS = 13
_MESSAGE_TOKENS = 8
_TOOLS_TOKENS = 700
"""The system prompt that any tool brings with it, of Claude."""
_TOOL_TOKENS = 16

_SETTINGS = frozenset(
    {
        "additionalModelResponseFieldPaths", "guardrailConfig", "inferenceConfig", "messages",
        "modelId", "performanceConfig", "requestMetadata", "schemaVersion", "serviceTier",
        "system", "toolConfig",
    }
)  # fmt: skip
"""Fields no model reads as they stand. The JSON of any other counts as input."""

_MEDIA: dict[str, MediaKind] = {
    "image": "image",
    "audio": "audio",
    "video": "file",
    "document": "file",
}
_NOVA_TOOL = "nova_"
_NOVA_SEARCH = "grounding"


class Reading:
    """One request, on the way from fields to prompt and features."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.prompt = PromptBuilder()
        self.features: set[str] = set()
        self.prompt.overhead_tokens = _PRIMING_TOKENS
        self._read_blocks(fields.get("system"), "system")
        for position, message in enumerate(_fields.read_messages(fields)):
            self.prompt.overhead_tokens += _MESSAGE_TOKENS
            self._read_blocks(message.get("content"), f"messages[{position}].content")
        self._read_tools(fields)
        for name, value in fields.items():
            if name not in _SETTINGS:
                self.prompt.add_json(value)
        for holder in (fields, table(fields.get("additionalModelRequestFields"))):
            _refuse_boundless(holder)

    def _read_blocks(self, blocks: Any, field: str) -> None:
        if isinstance(blocks, str):
            self.prompt.add_text(blocks)
        elif is_array(blocks):
            for block in blocks:
                self._read_block(block)
        elif blocks is not None:
            raise _fields.wrong(field, "an array of blocks", blocks)

    def _read_block(self, block: Any) -> None:
        if not is_object(block):
            self.prompt.add_part(block)
            return
        for name, value in block.items():
            self._read_member(name, value)

    def _read_member(self, name: str, value: Any) -> None:
        """Read what a block holds: one thing, but who knows which one a server takes."""
        if name == "cachePoint":
            self._note_cache(table(value))
        elif name in _MEDIA:
            self._read_media(name, table(value))
        elif name == "toolResult":
            self.prompt.add_text(table(value).get("toolUseId"))
            self._read_blocks(table(value).get("content"), "content of a toolResult")
        elif name == "guardContent":
            self.prompt.add_json(table(value).get("text"))
            if "image" in table(value):
                self._read_media("image", table(table(value)["image"]))
        elif name == "reasoningContent":
            self._read_reasoning(table(value))
        elif name == "text":
            self.prompt.add_text(value)
        elif name in ("toolUse", "json"):
            self.prompt.add_json(value)
        else:
            self.prompt.add_part({name: value})

    def _read_reasoning(self, content: dict[str, Any]) -> None:
        self.prompt.add_sealed(content.get("redactedContent"))
        self.prompt.add_part(content.get("reasoningText"))

    def _read_media(self, name: str, block: dict[str, Any]) -> None:
        if name == "video":
            self.features.add(_surcharges.VIDEO)
        self.prompt.add_text(block.get("name"))
        self.prompt.add_text(block.get("context"))
        source = table(block.get("source"))
        self.prompt.add_text(source.get("text"))
        self._read_blocks(source.get("content"), f"content of a {name}")
        if "text" not in source and "content" not in source:
            self.prompt.add_base64(_MEDIA[name], source.get("bytes"))

    def _read_tools(self, fields: dict[str, Any]) -> None:
        config = _fields.read_table(fields, "toolConfig")
        tools = _fields.read_objects(config, "tools")
        if tools:
            self.prompt.overhead_tokens += _TOOLS_TOKENS
            self.prompt.add_json(tools)
        for tool in tools:
            self.prompt.overhead_tokens += _TOOL_TOKENS
            if "cachePoint" in tool:
                self._note_cache(table(tool["cachePoint"]))
            if "systemTool" in tool:
                self.features.add(_feature_of(table(tool["systemTool"]).get("name")))

    def _note_cache(self, point: dict[str, Any]) -> None:
        hour = point.get("ttl") == "1h"
        self.features.add(_surcharges.CACHE_WRITE_1H if hour else _surcharges.CACHE_WRITE)


def _feature_of(tool: object) -> str:
    """Return the feature for a tool that the provider runs, such as `nova_code_interpreter`."""
    name = str(tool).removeprefix(_NOVA_TOOL)
    return _surcharges.WEB_SEARCH if name == _NOVA_SEARCH else _surcharges.of_tool(name)


def _refuse_boundless(fields: dict[str, Any]) -> None:
    if table(fields.get("reasoningConfig")).get("maxReasoningEffort") == "high":
        raise RequestError(
            "reasoningConfig.maxReasoningEffort must be low or medium: "
            "with high effort Nova takes no output bound."
        )
