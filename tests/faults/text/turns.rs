//! Which parts of a conversation are the assistant's.

use super::*;
use mixlora::data::{Body, EncodeOptions, Encoded, Encoder, Sample};
use std::time::Instant;

fn encode(dir: &Path, messages: Vec<Message>, max_length: usize) -> Result<Encoded, String> {
    let text = open(dir);
    let options = EncodeOptions { max_length, ..EncodeOptions::default() };
    let encoder = Encoder::new(&text.tokenizer, text.template.as_ref(), options).unwrap();
    let sample = Sample::new(1, None, Body::Messages(messages));
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
    let said = ["yes", "", " no", "a\nb"];
    let messages: Vec<Message> =
        (0..8).flat_map(|i| [user(&format!(" {i}? ")), assistant(said[i % 4])]).collect();
    let frame = |content: &str| {
        format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{content}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let trained = |content: &str| {
        let dir = with_template(&frame(content));
        let example = encode(dir.path(), messages.clone(), 1000).unwrap().example;
        let tokenizer = open(dir.path()).tokenizer;
        let trained = example.ids.iter().zip(&example.trained).filter(|(_, trained)| **trained);
        tokenizer.decode(&trained.map(|(id, _)| *id).collect::<Vec<_>>(), false)
    };
    let wanted = |write: &dyn Fn(usize, &str) -> String| -> String {
        (0..8).map(|i| write(i, said[i % 4]) + "<|im_end|>").collect()
    };
    assert_eq!(trained("{{ m.content }}"), wanted(&|_, text| text.into()));
    assert_eq!(trained("{{ m.content | trim }}"), wanted(&|_, text| text.trim().into()));
    // The last turn is another kind.
    let thinks = "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}";
    let last = |i: usize, text: &str| if i == 7 { format!("<think></think>{text}") } else { text.into() };
    assert_eq!(trained(thinks), wanted(&last));
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
    // Past turns without their reasoning are alike too.
    let thinks = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let thinks = with_template(thinks);
    let thoughts =
        (0..1500).flat_map(|i| [user("hi"), assistant(&format!("<think>{i}</think>ok"))]).collect();
    let encoded = encode(thinks.path(), thoughts, 1 << 20).unwrap();
    assert_eq!(encoded.example.trained_tokens(), 4_500);
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
