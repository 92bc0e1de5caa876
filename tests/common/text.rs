//! Messages and vocabularies for tests of texts.

use mixlora::text::{Message, Role, Vocab};

pub fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

pub fn assistant(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

/// A SentencePiece vocabulary: unknown, start and end token, bytes, pieces with their scores, control tokens.
pub fn sentencepiece(pieces: &[(&str, f32)], control: &[String]) -> Vocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    for byte in 0..256 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
    }
    let mut scores = vec![0.0; tokens.len()];
    for (piece, score) in pieces {
        tokens.push((*piece).into());
        types.push(1);
        scores.push(*score);
    }
    tokens.extend(control.iter().cloned());
    types.resize(tokens.len(), 3);
    scores.resize(tokens.len(), 0.0);
    Vocab {
        model: "llama".into(),
        tokens,
        types,
        scores: Some(scores),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_bos: true,
        add_space_prefix: true,
        ..Vocab::default()
    }
}
