"""Chat templates that come with PolyServe, by name. PolyLM's checkpoints carry none.

polylm-base         Raw text: the messages one under another, whoever says them. The base models go on with it.
polylm-multialpaca  `{query}\\n\\n` and then the answer and `\\n`; runs of newlines inside a query are one newline.
polylm-chat         `<|user|>\\n{text}\\n<|assistant|>\\n` and then the answer; the two markers are plain text.
Both tuned models know the roles user and assistant only.
Source   https://github.com/DAMO-NLP-MT/PolyLM: README.md, tools/polylm_cli_demo.py
"""

_BASE = """\
{%- for message in messages -%}
    {{- message.content }}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor -%}
"""

_MULTIALPACA = """\
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- set lines = message.content.split('\\n') | select | list -%}
        {%- if message.content.startswith('\\n') %}{{ '\\n' }}{% endif -%}
        {{- lines | join('\\n') -}}
        {%- if lines and message.content.endswith('\\n') %}{{ '\\n' }}{% endif -%}
        {{- '\\n\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {{- message.content + '\\n' -}}
    {%- else -%}
        {{- raise_exception("polylm-multialpaca knows the roles user and assistant, got '" + message.role + "'") -}}
    {%- endif -%}
{%- endfor -%}
"""

_CHAT = """\
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|user|>\\n' + message.content + '\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|assistant|>\\n' + message.content + '\\n' -}}
    {%- else -%}
        {{- raise_exception("polylm-chat knows the roles user and assistant, got '" + message.role + "'") -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}
"""

BUILT_IN_TEMPLATES: dict[str, str] = {
    "polylm-base": _BASE,
    "polylm-multialpaca": _MULTIALPACA,
    "polylm-chat": _CHAT,
}
