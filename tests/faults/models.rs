//! Models, adapters and reference files.
