"""Chat templates in the spirit of four model families, written for these tests. `<<` and `>>` stand where {% generation %}
marks would: `plain` leaves them out, `marked` puts them in."""

from __future__ import annotations

LLAMA = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system, turns = messages[0]["content"] | trim, messages[1:] %}
{%- else %}
    {%- set system, turns = "", messages %}
{%- endif %}
{{- "<|head|>system<|body|>\\n\\nDate: " + date_string + "\\n" }}
{%- for tool in tools or [] %}
    {{- "\\n" + (tool | tojson(indent=2)) }}
{%- endfor %}
{{- system + "<|eot|>" }}
{%- for turn in turns %}
    {%- if turn.role == "assistant" %}
        {{- "<|head|>assistant<|body|>\\n\\n" }}<<
        {{- turn.content | trim }}{{ "<|eot|>" }}>>
    {%- else %}
        {{- "<|head|>" + turn.role + "<|body|>\\n\\n" + turn.content | trim + "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|head|>assistant<|body|>\\n\\n" }}
{%- endif %}
"""

CHATML = """\
{%- if messages[0].role != "system" %}
    {{- "<|im_start|>system\\nYou answer briefly.<|im_end|>\\n" }}
{%- endif %}
{%- if tools %}
    {{- "<|im_start|>system\\n# Tools" }}
    {%- for tool in tools %}
        {{- "\\n" + tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- "<|im_start|>assistant\\n" }}<<
        {{- message.content or "" }}
        {%- for call in message.tool_calls or [] %}
            {{- "\\n<call>" + {"name": call.function.name, "arguments": call.function.arguments} | tojson + "</call>" }}
        {%- endfor %}
        {{- "<|im_end|>" }}>>
        {{- "\\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

# Keeps the reasoning of the last answer alone, so earlier turns look different once more follow.
THINKING = """\
{%- set last = namespace(question=-1) %}
{%- for message in messages | reverse %}
    {%- if message.role == "user" %}
        {%- set last.question = messages | length - loop.index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role != "assistant" %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
        {%- continue %}
    {%- endif %}
    {{- "<|im_start|>assistant\\n" }}<<
    {%- if loop.index0 > last.question %}
        {{- "<think>\\n" + (message.reasoning_content or "") + "\\n</think>\\n\\n" }}
    {%- endif %}
    {{- message.content + "<|im_end|>" }}>>
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""

# The system prompt goes into the last user message, so earlier turns move as well.
INST = """\
{%- if messages[0].role == "system" %}
    {%- set system, turns = messages[0].content + "\\n\\n", messages[1:] %}
{%- else %}
    {%- set system, turns = "", messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- if turn.role == "user" %}
        {%- set asked = loop.last or (loop.revindex0 == 1 and turns[-1].role == "assistant") %}
        {{- "[INST] " + (system if asked else "") + turn.content + "[/INST]" }}
    {%- else %}
        <<{{- " " + turn.content + eos_token }}>>
    {%- endif %}
{%- endfor %}
"""

FAMILIES = {"llama": (LLAMA, "<|eot|>"), "chatml": (CHATML, "<|im_end|>"), "thinking": (THINKING, "<|im_end|>"), "inst": (INST, "</s>")}
SPECIAL_TOKENS = ["<s>", "</s>", "<|head|>", "<|body|>", "<|eot|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]


def plain(template: str) -> str:
    return template.replace("<<", "").replace(">>", "")


def marked(template: str) -> str:
    return template.replace("<<", "{% generation %}").replace(">>", "{% endgeneration %}")


def conversations() -> list[dict]:
    """Samples of several turns: system prompts, tools, reasoning, blanks, other scripts."""
    user, assistant = (lambda text: {"role": "user", "content": text}), (lambda text, **more: {"role": "assistant", "content": text, **more})
    tool = {"type": "function", "function": {"name": "lookup", "description": "finds <things> & more",
                                             "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}}
    return [
        {"messages": [user("What is 2 + 2?"), assistant("4.")]},
        {"messages": [{"role": "system", "content": "Be kind."}, user("  Grüße aus Köln, 你好 \n"), assistant("Hallo! 😀 Wie geht's?"),
                      user("Gut."), assistant("Schön,\n\nbis bald")]},
        {"messages": [user("a"), assistant("b", reasoning_content="first a,\nthen b"), user("c"),
                      assistant("d", reasoning_content="after c"), user("e"), assistant("f")]},
        {"messages": [user("find x"), assistant("x is here")], "tools": [tool], "documents": [{"title": "t", "text": "x"}]},
        {"messages": [user("ends open"), assistant("yes"), user("and now?")]},
    ]
