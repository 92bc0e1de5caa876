//! Which parts of a conversation are the assistant's.

use super::*;
use mixlora::data::{Body, EncodeOptions, Encoded, Encoder, Sample};
use std::time::Instant;

fn encode(dir: &Path, messages: Vec<Message>, max_length: usize) -> Result<Encoded, String> {
    let text = open(dir);
    let options = EncodeOptions { max_length, ..EncodeOptions::default() };
    let encoder = Encoder::new(&text.tokenizer, text.template.as_ref(), options).unwrap();
    let sample = Sample { line: 1, task: None, body: Body::Messages(messages) };
    encoder.sample(Path::new("data.jsonl"), &sample).map_err(|e| e.to_string())
}

fn with_template(template: &str) -> tempfile::TempDir {
    let dir = model();
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

#[test]
fn two_generation_blocks() {
    let blocks = "{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}BETWEEN{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let dir = with_template(&blocks.replace("BETWEEN", ""));
    assert_eq!(shown(dir.path(), &talk(), &[]), "u:aa:[[b<|im_end|>]]");
    // What stands between two blocks is not the model's.
    let dir = with_template(&blocks.replace("BETWEEN", "|"));
    assert_eq!(shown(dir.path(), &talk(), &[]), "u:aa:[[b]]|[[<|im_end|>]]");
    // Only some turns are marked.
    let last = "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}";
    let two = json!({ "messages": [
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "b" },
        { "role": "user", "content": "c" }, { "role": "assistant", "content": "d" },
    ] });
    assert_eq!(shown(with_template(last).path(), &two, &[]), "a;b;c;[[d<|im_end|>]]");
    // Nothing that is marked ends.
    let endless = with_template(&blocks.replace("BETWEEN", "|").replace("<|im_end|>", "."));
    let e = encode(endless.path(), vec![user("a"), assistant("b")], 99).unwrap_err();
    assert!(e.contains("no end token is trained in what the template marks as generated"), "{e}");
}

#[test]
fn generation_prompt_opens_think() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>{{ '\\n' }}{% endif %}";
    let dir = with_template(template);
    assert_eq!(shown(dir.path(), &talk(), &[]), "<U>a<A>[[b<|im_end|>]]");
    // Whatever the answer has in common with what the prompt opens.
    let answer = |content: &str| {
        let sample = json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": content }] });
        shown(dir.path(), &sample, &[])
    };
    assert_eq!(answer("<think>"), "<U>a<A>[[<think><|im_end|>]]");
    assert_eq!(answer("<t"), "<U>a<A>[[<t<|im_end|>]]");
    assert_eq!(answer("why</think>b"), "<U>a<A>[[b<|im_end|>]]");
}

/// Turns found together are those found one by one.
#[test]
fn turns_of_long_conversations_are_found() {
    let messages = |n: usize| -> Vec<Message> {
        (0..n)
            .flat_map(|i| [user(&format!(" {i}? ")), assistant(["yes", "", " no", "a\nb"][i % 4])])
            .collect()
    };
    let templates = [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ];
    for template in templates {
        let dir = with_template(template);
        let long = encode(dir.path(), messages(8), 1000).unwrap().example;
        let text = open(dir.path()).tokenizer;
        let mut trained = String::new();
        for (i, (&id, &is)) in long.ids.iter().zip(&long.trained).enumerate() {
            trained += if is && !long.trained[i - 1] { "[" } else { "" };
            trained += &if is { text.decode(&[id], false) } else { String::new() };
        }
        let wanted: String = messages(8)
            .iter()
            .filter(|m| m.role == Role::Assistant)
            .map(|m| {
                format!(
                    "[{}<|im_end|>",
                    if template.contains("trim") { m.content.trim() } else { &m.content }
                )
            })
            .collect();
        let wanted = if template.contains("think") {
            wanted.replacen("[a\nb<|im_end|>", "[a\nb<|im_end|>", 1)
        } else {
            wanted
        };
        let last =
            if template.contains("think") { wanted.rsplit_once('[').unwrap() } else { (&wanted[..], "") };
        let wanted =
            if last.1.is_empty() { wanted.clone() } else { format!("{}[<think></think>{}", last.0, last.1) };
        assert_eq!(trained, wanted, "{template}");
    }
}

#[test]
fn long_conversation_is_quadratic() {
    let dir = model();
    let talk: Vec<Message> = (0..2000).flat_map(|_| [user("hi"), assistant("ok")]).collect();
    let started = Instant::now();
    let encoded = encode(dir.path(), talk.clone(), 1 << 20).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    // Each answer with its end token: three tokens.
    assert_eq!(encoded.example.trained.iter().filter(|t| **t).count(), 6_000);
    assert!(seconds < 20.0, "{seconds} s without optimisation; it was minutes");
    // A template that writes every turn in another way is refused, where it would take too long.
    let counted = "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ messages | length + 1 }}{% endif %}";
    let counted = with_template(counted);
    assert_eq!(encode(counted.path(), talk[..20].to_vec(), 999).unwrap().example.trained_tokens(), 30);
    let e = encode(counted.path(), talk, 999).unwrap_err();
    assert!(
        e.contains("the conversation is too long for a template that writes its turns in many ways"),
        "{e}"
    );
}
