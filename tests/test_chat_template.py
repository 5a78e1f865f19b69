from __future__ import annotations

import contextlib

import pytest

from promptflow.engine.model.chat_template import scaffold, stops_of
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import NoReasoningBlock, TemplateError
from promptflow.sandbox import MAX_OUTPUT, Job, RenderFailed, render_here

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)


def render(template: str, roles: tuple[str, ...] = ("user",)) -> tuple[str, ...]:
    return scaffold(template, roles, "<s>", "</s>")


def test_chatml_gives_its_texts_around_contents():
    roles = ("system", "user", "assistant", "user")
    texts = render(CHATML, roles)
    assert texts == (
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    assert texts == ScriptedEngine(lambda text, slot: "").scaffold(roles)


def test_an_assistant_turn_at_the_end_is_closed_not_opened():
    roles = ("user", "assistant")
    assert render(CHATML, roles)[-1] == "<|im_end|>\n"
    assert render(CHATML, roles) == ScriptedEngine(lambda text, slot: "").scaffold(roles)


def test_a_refused_system_turn_goes_into_the_turn_after_it():
    assert render(NO_SYSTEM, ("system", "user")) == ("<s>[user] ", "\n\n", "\n[model] ")
    with pytest.raises(TemplateError, match="System role not supported"):
        render(NO_SYSTEM, ("system",))
    with pytest.raises(TemplateError, match="System role not supported"):
        render(NO_SYSTEM, ("user", "system"))


def test_what_real_templates_use_is_there():
    template = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if m.content is string -%}"
        "{%- set ns.n = ns.n + 1 -%}{{ loop.index0 }}{{ '%s' % m.role }}:{{ m.content }}"
        "{%- if loop.last and not tools -%}{%- break -%}{%- endif -%}{%- endif -%}{%- endfor -%}"
        "{% for i in range(2) %}{{ i }}{% endfor %}{{ dict(a=1).a }}{{ ns.n * 3 }}"
        "{{ strftime_now('%Y')[:2] }}{{ eos_token }}{{ [1, 2] | tojson }}{{ tools is defined }}"
    )
    first, last = render(template)
    assert first == "0user:"
    assert last == "0113" + "20</s>[1, 2]False"


def test_marks_for_those_who_train_are_rendered_without():
    """As SmolLM3's template and others have them around what the assistant wrote."""
    marked = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages %}{%- generation -%}"
    ).replace("{% endfor %}", "{%- endgeneration %}{% endfor %}")
    roles = ("system", "user", "assistant", "user")
    assert "generation %}" in marked
    assert render(marked, roles) == render(CHATML, roles)


def test_repetition_is_bounded_not_forbidden():
    assert render("{{ '=' * 20 }}{{ messages[0].content }}{{ 2 ** 10 }}") == ("=" * 20, "1024")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content[:8] }}",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{{ messages[0].content | reverse }}",
        "no content at all",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_alters_contents_is_refused(template):
    with pytest.raises(TemplateError, match="layout='completion'"):
        render(template, ("user", "assistant"))


def test_contents_cannot_be_told_from_each_other():
    """A template that looks for a text in contents finds none: they stand for themselves."""
    spying = "{% if 'a' in messages[0].content %}{% endif %}{{ messages[0].content }}"
    assert render(spying) == ("", "")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9**(9**9) }}",
        "{{ 9**(9**9**9) }}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 'x'.join(range(10000) | map('string')) * 9999 }}",
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}x"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}x{% endfor %}",
        "{{ range(10**12) | list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'a' | center(1000000000) }}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(40) %}"
        "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}"
        "{% endfor %}{{ ns.n }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for i in range(9999) %}{% for j in range(999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    ],
    ids=lambda template: template[:40],
)
def test_a_template_that_does_not_end_is_stopped(template):
    with pytest.raises(TemplateError):
        render(template + "{{ messages[0].content }}")


def test_output_is_bounded():
    line = "{{ messages[0].content }}{% for i in range(9000) %}" + "a" * 600 + "{% endfor %}"
    with pytest.raises(TemplateError, match=f"over {MAX_OUTPUT:,}"):
        render(line)


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception.__code__ }}",
        "{{ range.__self__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ ['__class__'] | map('attr', '__mro__') | list | first | first }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '{0.__class__.__base__}'.format_map({'0': 1}) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f')|attr('__mro__') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ __import__('os') }}",
        "{{ config }}{{ request.application.__globals__ }}",
        "{{ get_flashed_messages.__globals__ }}",
        "{% debug %}",
        "{{ 1",
        "{% for %}",
    ],
)
def test_a_template_reaches_nothing_outside(payload):
    """In this process, since nothing here runs for long; forbidden attributes may be undefined."""
    context = {"messages": [{"role": "user", "content": "c"}], "bos_token": ""}
    text = ""
    with contextlib.suppress(RenderFailed):
        text = render_here(Job("chat", payload, context)).text
    assert text in ("", "[Undefined]")


def test_a_long_template_is_refused_and_none_says_what_to_do():
    with pytest.raises(TemplateError, match="300,025 characters are over"):
        render("{{ messages[0].content }}" + " " * 300_000)
    with pytest.raises(TemplateError, match="layout='completion'"):
        render("")


def turns(before: str, after: str = "", prompt: str = "<|a|>", history: str = "") -> str:
    """Return a template whose answers have their reasoning between ``before`` and ``after``."""
    return (
        "{% for m in messages %}<|{{ m.role[0] }}|>"
        + history
        + (before and f"{{% if m.reasoning_content %}}{before}{{{{ m.reasoning_content }}}}{after}")
        + (before and "{% endif %}")
        + "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
        + prompt
        + "{% endif %}"
    )


SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}"
KINDS = {
    "a switch that writes an empty block": (
        turns("<think>\n", "\n</think>\n\n", f"<|a|>{SWITCH}<think>\n\n</think>\n\n{{% endif %}}"),
        "<|end|><|a|><think>\n\n</think>\n\n",
        ("<|end|><|a|><think>\n", "\n</think>\n\n"),
    ),
    "a prompt that ends in an open block": (
        turns("<think>\n", "\n</think>\n\n", "<|a|><think>\n"),
        "<|end|><|a|><think>\n\n</think>\n\n",
        ("<|end|><|a|><think>\n", "\n</think>\n\n"),
    ),
    "an open block, and reasoning is never shown": (
        turns("", prompt="<|a|><think>\n"),
        "<|end|><|a|><think>\n\n</think>\n\n",
        ("<|end|><|a|><think>\n", "\n</think>\n\n"),
    ),
    "a switch, and reasoning is never shown": (
        turns("", prompt=f"<|a|>{SWITCH}<think>\n\n</think>\n{{% endif %}}"),
        "<|end|><|a|><think>\n\n</think>\n",
        ("<|end|><|a|><think>\n", "\n</think>\n"),
    ),
    "channels": (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}"
        "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
        "{% endif %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        (
            "<|end|><|start|>assistant<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ),
    "no switch at all": (
        turns("<think>", "</think>"),
        "<|end|><|a|><think></think>",
        ("<|end|><|a|><think>", "</think>"),
    ),
    "a switch that opens": (
        turns("<think>", "</think>", "<|a|>{% if enable_thinking %}<think>{% endif %}"),
        "<|end|><|a|>",
        ("<|end|><|a|><think>", "</think>"),
    ),
    "a mode": (
        turns("<t>", "</t>", "<|a|>{{ '</t>' if thinking_mode == 'disabled' }}"),
        "<|end|><|a|></t>",
        ("<|end|><|a|><t>", "</t>"),
    ),
    "an effort": (
        turns("<t>", "</t>", "<|a|><t>{{ '</t>' if reasoning_effort == 'no_think' }}"),
        "<|end|><|a|><t></t>",
        ("<|end|><|a|><t>", "</t>"),
    ),
    "words in the place of tags": (
        turns("", prompt="<|a|>Steps:\n").replace(
            "{{ m.content }}",
            "{% if m.reasoning %}{{ m.reasoning }}\n[FINAL]\n{% endif %}{{ m.content }}",
        ),
        "<|end|><|a|>Steps:\n\n[FINAL]\n",
        ("<|end|><|a|>Steps:\n", "\n[FINAL]\n"),
    ),
    "parts": (
        "{% for m in messages %}<|{{ m.role[0] }}|>{% for p in m.content %}"
        "{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}[/THINK]{% else %}{{ p.text }}"
        "{% endif %}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
        "<|end|><|a|>[THINK][/THINK]",
        ("<|end|><|a|>[THINK]", "[/THINK]"),
    ),
    "no block": (turns(""), "<|end|><|a|>", None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reasoning_blocks_are_found_by_what_templates_write(kind):
    template, closed, block = KINDS[kind]
    assert render(template, ("system", "user"))[-1] == closed
    assert render(template, ("user",))[-1] == closed
    if block is None:
        with pytest.raises(NoReasoningBlock, match="thinking=True"):
            render(template, ("user", "reasoning"))
    else:
        assert render(template, ("user", "reasoning"))[-2:] == block
        assert render(template, ("system", "user", "reasoning"))[-2:] == block


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][2]])
def test_past_turns_carry_reasoning_where_templates_drop_it_too(kind):
    template, closed, block = KINDS[kind]
    roles = ("user", "reasoning", "assistant", "user", "assistant", "user")
    texts = render(template, roles)
    assert len(texts) == len(roles) + 1
    assert texts[-1] == closed
    opening, closing = block
    assert texts[2] == closing
    assert texts[1] in (opening, opening.replace("Steps:\n", ""))


def test_a_block_that_nothing_closes_is_refused():
    with pytest.raises(TemplateError, match="nothing shows how it is closed"):
        render(turns("", prompt="<|a|><|think|>"))


@pytest.mark.parametrize(
    ("closing", "stops"),
    [
        ("</think>", ("</think>",)),
        ("\n</think>\n\n", ("\n</think>", "</think>")),
        ("<|end|><|start|>assistant", ("<|end|>",)),
        ("\n[BEGIN FINAL RESPONSE]\n", ("\n[BEGIN FINAL RESPONSE]", "[BEGIN FINAL RESPONSE]")),
        ("\nAnswer:\nx", ("\nAnswer:", "Answer:")),
    ],
)
def test_reasoning_ends_where_the_block_is_closed(closing, stops):
    assert stops_of(closing) == stops


def test_json_is_written_as_models_know_it():
    source = (
        "{{ x | tojson }}{{ x | tojson(ensure_ascii=True) }}{{ x | tojson(indent=1) }}"
        "{{ y | tojson(separators=(',', ':'), sort_keys=True) }}{{ '-' * 3 }}"
    )
    job = Job("chat", source, {"x": ["<é'>"], "y": {"b": 1, "a": 2}})
    assert render_here(job).text == '["<é\'>"]["<\\u00e9\'>"][\n "<é\'>"\n]{"a":2,"b":1}---'


def test_roles_that_a_template_does_not_know_are_those_that_it_knows():
    strict = (
        "{% for m in messages %}{% if m.role not in ('system', 'user') %}"
        "{{ raise_exception(m.role) }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    assert render(strict, ("developer", "tool")) == ("[system]", "[user]", "")


def test_a_role_that_a_template_never_names_is_not_written_into_it():
    """ChatML writes any word in the place of a role, and its model has seen three of them."""
    roles = ("developer", "user", "tool")
    assert render(CHATML, roles) == render(CHATML, ("system", "user", "user"))
    knowing = CHATML + "{# 'developer' and \"tool\" are roles of this model's #}"
    assert render(knowing, roles)[0] == "<|im_start|>developer\n"
    assert render(knowing, roles)[2] == "<|im_end|>\n<|im_start|>tool\n"
