//! Tokenizers, special tokens and chat templates.
