//! Samples and what they say about training.
