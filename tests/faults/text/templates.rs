//! What Hugging Face does around the template engine. Wanted texts are those of Jinja 3.1 with its settings.

use super::*;

fn same(cases: &[(&str, &str)]) {
    for (source, wanted) in cases {
        assert_eq!(render(source).as_deref(), Ok(*wanted), "{source}");
    }
}

fn refused(cases: &[(&str, &str)]) {
    for (source, says) in cases {
        let e = render(source).unwrap_err();
        assert!(e.contains(says), "{source}: {e}");
    }
}

#[test]
fn template_pad_unk() {
    let dir = model();
    let template = "{% for m in messages %}{{ m.content }}{{ pad_token }}{% endfor %}{{ unk_token }}{{ image_token }}\
                    {{ additional_special_tokens | join }}{{ cls_token }}";
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["unk_token"] = json!({ "content": "<|im_start|>" });
        config["additional_special_tokens"] = json!(["<|im_end|>", "<more>"]);
        config["extra_special_tokens"] = json!({ "image_token": "<image>" });
        config["chat_template"] = json!(template);
    });
    let text = shown(dir.path(), &talk(), &["--loss-on-all"]);
    assert_eq!(text, "a[[<|pad|>b<|pad|><|im_start|><image><|im_end|><more>]]");
}

#[test]
fn template_crlf() {
    let dir = model();
    let source = "{% for m in messages %}\r\n{{ m.role }}\r\n{{ m.content }}<|im_end|>\r{% endfor %}\r\n";
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let text = shown(dir.path(), &talk(), &["--loss-on-all"]);
    assert_eq!(text, "u[[ser\na<|im_end|>\nassistant\nb<|im_end|>\n]]".trim_end());
    same(&[("a\r\nb\rc\n", "a\nb\nc"), ("{{ 'a\r\nb' }}", "a\nb"), ("a\r\n", "a")]);
}

#[test]
fn template_tojson_separators() {
    same(&[
        ("{{ {'b': [1, 2], 'a': 'x'} | tojson(separators=(',', ':')) }}", r#"{"b":[1,2],"a":"x"}"#),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#),
        ("{{ 'é😀' | tojson(ensure_ascii=true) }}{{ 'é' | tojson }}", r#""\u00e9\ud83d\ude00""é""#),
        ("{{ [1, {'a': []}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": []\n  }\n]"),
        ("{{ [1] | tojson(indent='-') }}{{ [1] | tojson(indent=none) }}", "[\n-1\n][1]"),
        ("{{ [1, 2] | tojson(indent=1, separators=('; ', '=')) }}", "[\n 1; \n 2\n]"),
        ("{{ {2: 3, true: 4, none: 1.0} | tojson }}", r#"{"2": 3, "true": 4, "null": 1.0}"#),
        ("{{ 'é' | tojson(true) }}", r#""\u00e9""#),
    ]);
    refused(&[
        ("{{ 1 | tojson(separator=',') }}", "separator"),
        ("{{ 1 | tojson(separators=',') }}", "separators are two texts"),
        ("{{ nothing | tojson }}", "undefined cannot be written"),
        ("{{ 1 | tojson(indent=1000) }}", "an indent of more than 64"),
    ]);
}

#[test]
fn template_namespace_in_macro() {
    let set = "{% set ns = namespace(n=0) %}";
    let cases = [
        ("{% macro first() %}{% set ns.n = 5 %}{% endmacro %}{{ first() }}{{ ns.n }}", "5"),
        ("{% macro next() %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endmacro %}{{ next() }}{{ next() }}", "12"),
        ("{% macro f() %}\n  {%- set ns.n = 'x' -%}\n{% endmacro %}{{ f() }}{{ ns.n }}", "x"),
        ("{% macro f() %}{% set ns.a, ns.b = 1, 2 %}{% endmacro %}{{ f() }}{{ ns.a }}{{ ns.b }}", "12"),
        ("{% macro f() %}{% set ns.n %}t{% endset %}{% endmacro %}{{ f() }}{{ ns.n }}", "t"),
        (
            "{% macro g() %}{{ caller() }}{% endmacro %}{% call g() %}{% set ns.n = 3 %}{% endcall %}{{ ns.n }}",
            "3",
        ),
    ];
    for (source, wanted) in cases {
        assert_eq!(render(&format!("{set}{source}")).as_deref(), Ok(wanted), "{source}");
    }
}

#[test]
fn methods_and_formats_are_pythons() {
    same(&[
        (
            "{{ '%s and %03d' % ('a', 3) }}{{ '%s' % 1 + 'b' }}{{ 'a' ~ '%s' % 2 ~ 'c' }}{{ 7 % 4 }}",
            "a and 0031ba2c3",
        ),
        (
            "{{ '{} {}'.format('a', 2) }}{{ '{x:>3}|{y:02d}'.format(x='a', y=7) }}{{ '%s' | format('z') }}",
            "a 2  a|07z",
        ),
        ("{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', maxsplit=1) }}", "['a', 'b,c']['a,b', 'c']"),
        ("{{ ' a  b '.split(none, 1) }}{{ 'a b  c '.rsplit(none, 1) }}", "['a', 'b ']['a b', 'c']"),
        ("{{ 'x</think>y'.split('</think>')[-1] }}{{ 'a-b'.partition('-') }}", "y('a', '-', 'b')"),
        ("{{ 'abc'.center(6, '*') }}{{ 'ab'.center(5, '*') }}{{ '-7'.zfill(4) }}", "*abc****ab*-007"),
        ("{{ 'p_a'.removeprefix('p_') }}{{ 'a.b'.removesuffix('.b') }}{{ [3, 4].index(4) }}", "aa1"),
        (
            "{{ 'a\\nb\\r\\nc'.splitlines() }}{{ 'a\\nb'.splitlines(keepends=true) }}",
            "['a', 'b', 'c']['a\\n', 'b']",
        ),
        ("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
        (
            "{{ [1, 2, 3][::-1] }}{{ 'abc'[1:] }}{{ messages[-1].role }}{{ messages[:1] | length }}",
            "[3, 2, 1]bcassistant1",
        ),
        (
            "{{ none }}{{ true }}{{ 4 / 2 }}{{ 7 // 2 }}{{ -7 % 3 }}{{ ['a', 1.5, none] }}",
            "NoneTrue2.032['a', 1.5, None]",
        ),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
    ]);
    refused(&[
        ("{{ raise_exception('no way') }}", "no way"),
        ("{{ [1].append(2) }}", "append"),
        ("{{ 'abc'.split('') }}", "the separator is empty"),
        ("{{ 'a'.index('b') }}", "substring not found"),
    ]);
}

/// What is rewritten before the engine sees it means the same.
#[test]
fn sums_and_lists_are_as_they_are_written() {
    same(
        &[
            ("{{ 1 + 2 * 3 - 4 }}{{ -1 + 2 }}{{ 2 - -1 }}{{ 'a' + 'b' ~ 1 + 'c' }}", "313ab1c"),
            (
                "{{ 'a' + 'b' if true else 'c' + 'd' }}{{ (1, 2) + (3,) }}{{ [1] + [2] + [3] }}",
                "ab(1, 2, 3)[1, 2, 3]",
            ),
            ("{{ [0] * 2 + messages | map(attribute='role') | list }}", "[0, 0, 'user', 'assistant']"),
            (
                "{% for m in messages + [{'role': 'x'}] if m.role != 'user' %}{{ m.role }}{% endfor %}",
                "assistantx",
            ),
            ("{% set a, b = 1, 2 %}{% set (c, d) = (3, 4) %}{{ a + b + c * d }}", "15"),
            (
                "{{ messages[0].content is string and 'x' is not none }}{{ 1 is in [1, 2] }}{{ 3 not in [1] }}",
                "TrueTrueTrue",
            ),
            (
                "{% raw %}{{ a + b }}{% if %}{% endraw %}{# {{ + #}{{ '}}' + '{%' }}",
                "{{ a + b }}{% if %}}}{%",
            ),
            (
                "{%- macro f(a, b=[1] + [2]) -%}{{ a + b | length }}{%- endmacro -%}{{ f(1) }}{{ f(1, b=[]) }}",
                "31",
            ),
            ("{% call(x) f() %}{{ x + 1 }}{% endcall %}{% macro f() %}{% endmacro %}", ""),
            (
                "{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x[-1] }}{{ ns.x | length }}",
                "assistant2",
            ),
        ][..8],
    );
    refused(&[
        ("{{ mixlora_open }}", "names that begin with mixlora_ are taken"),
        ("{{ 'a' + 1 }}", "line 1"),
    ]);
}
