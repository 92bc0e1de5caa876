//! Templates that would take the stack, the memory or the time of the process.

use super::*;
use std::time::Instant;

/// The error of a template, on a thread with the stack that threads have; it must come soon.
fn stopped(source: String, says: &str) {
    let head: String = source.chars().take(90).collect();
    let started = Instant::now();
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || render(&source));
    let e = thread.unwrap().join().unwrap().expect_err(&head);
    assert!(e.contains(says), "{head}: {e}");
    // Without optimisation.
    assert!(started.elapsed().as_secs() < 20, "{head}: {:?}", started.elapsed());
}

#[test]
fn template_stack_overflow() {
    let links =
        [" ~ 1", "+1", ".a", "[0]", "()", "|string", " and 1", "**1", " is defined", " if 1 else 1", " * 1"];
    for link in links {
        stopped(format!("{{{{ x{} }}}}", link.repeat(40_000)), "line 1: more than 250 parts");
    }
    for sign in ["not ", "- ", "1 if 1 else "] {
        stopped(format!("{{{{ {}1 }}}}", sign.repeat(40_000)), "too deeply nested");
    }
    stopped(
        format!("{{{{ 1 }}}}\n{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(20_000)),
        "line 2: more than 100 elif",
    );
    stopped("{% if 1 %}".repeat(20_000), "line 1");
    stopped("x".repeat(1 << 20), "are read");
    // What is allowed is not too deep.
    let most = format!("{}{}", "{% elif a %}".repeat(99), "{% if 1 %}".repeat(140));
    let most = format!(
        "{{% if a %}}{most}{{{{ {}1 }}}}{}{{% endif %}}",
        "not ".repeat(245),
        "{% endif %}".repeat(140)
    );
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || render(&most));
    assert_eq!(thread.unwrap().join().unwrap().as_deref(), Ok(""));
}

#[test]
fn values_in_values_end() {
    let grow = |value: &str| {
        format!(
            "{{% set ns = namespace(s=[]) %}}{{% for i in range(90000) %}}{{% set ns.s = {value} %}}{{% endfor %}}{{{{ ns.s }}}}"
        )
    };
    for value in ["[ns.s]", "{'a': ns.s}", "(ns.s, 1)", "dict(a=ns.s)"] {
        stopped(grow(value), "more than 32 deep");
    }
    for value in ["ns.s[::1]", "ns.s * 1", "ns.s | reverse"] {
        stopped(grow(value), "work limit");
    }
    stopped("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}".into(), "a namespace cannot be");
    stopped(
        "{% set ns = namespace() %}{% set ns.a = namespace(b=ns) %}{{ ns }}".into(),
        "a namespace cannot be",
    );
    stopped("{% for x in [[1]] recursive %}{{ loop([[x]]) }}{% endfor %}".into(), "deep");
    stopped(
        "{% macro f(x) %}{% for a in [1] %}{{ 'a' ~ f([x]) }}{% endfor %}{% endmacro %}{{ f(1) }}".into(),
        "recursion limit",
    );
}

#[test]
fn template_format_width() {
    for source in [
        "{{ '{:>10000000000}'.format(3) }}",
        "{{ '{:.1000000000f}'.format(3.5) }}",
        "{{ '{:01000000000d}'.format(3) }}",
        "{{ '{x:99999}'.format(x=3) }}",
        "{{ '%1000000000d' % 3 }}",
        "{{ '%.99999f' | format(1.5) }}",
    ] {
        stopped(source.into(), "is no width or precision");
    }
    for source in ["{{ 'a'.center(1000000000) }}", "{{ 'a'.zfill(10 ** 12) }}", "{{ 'a' * 1000000000 }}"] {
        stopped(source.into(), "work limit");
    }
    assert_eq!(render("{{ '{:>9}|{:.3f}'.format(3, 0.5) }}").as_deref(), Ok("        3|0.500"));
}

#[test]
fn template_work_limit() {
    let double = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}"
        )
    };
    let limit = "limit";
    for step in [
        "ns.s ~ ns.s",
        "ns.s + ns.s",
        "'{}{}'.format(ns.s, ns.s)",
        "'%s%s' % (ns.s, ns.s)",
        "ns.s.replace('a', ns.s)",
    ] {
        let source = double("'aaaaaaaa'", step);
        let e = render(&source).unwrap_err();
        assert!(e.contains(limit) || e.contains("bytes of text"), "{step}: {e}");
    }
    for (start, step) in [
        ("[1]", "ns.s + ns.s"),
        ("(1,)", "ns.s + ns.s"),
        ("[1]", "[ns.s, ns.s] | sum(start=[])"),
        ("[1]", "ns.s * 2"),
    ] {
        stopped(double(start, step), "bytes of text");
    }
    stopped("{{ ['a' * 10000] * 100000 }}".into(), "bytes of text");
    stopped("{{ ['a' * 10000] * 100000 | length }}".into(), "");
    stopped(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(),
        "work limit",
    );
    stopped(
        "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% set x = s.split('a') %}{% endfor %}".into(),
        "work limit",
    );
    stopped("{% set s = 'a' * 1000000 %}{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{{ s == t }}{% endfor %}".into(), "work limit");
}

/// The limits grow with the conversation.
#[test]
fn long_conversations_are_rendered() {
    let messages: Vec<Message> =
        (0..30_000).map(|i| if i % 2 == 0 { user("hello") } else { assistant("hi") }).collect();
    let chatml = ChatTemplate::named("chatml").unwrap();
    let text = chatml.render(&messages, true, &SpecialTokens::default()).unwrap();
    assert_eq!(text.matches("<|im_end|>").count(), 30_000);
    let one = [user(&"word ".repeat(400_000))];
    let source =
        "{% for m in messages %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endfor %}";
    let text = ChatTemplate::new(source).unwrap().render(
        &one,
        true,
        &SpecialTokens::default().with("bos_token", "<s>"),
    );
    assert_eq!(text.unwrap().len(), "<s>[INST]  [/INST]".len() + one[0].content.len() - 1);
}
