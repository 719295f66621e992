//! Model.
pub mod files;
pub mod tokenizer;
