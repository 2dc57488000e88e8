//! What an instruction depends on, as one digest: the key under which its result is remembered.
//!
//! It depends on the layers below, on what the instruction says with all variables replaced, and for COPY
//! on what it copies. So the same work is found again whoever asked for it, in whatever file.

use lamina_layers::digest::{DiffId, Digest};
use sha2::{Digest as _, Sha256};

/// Changes when the meaning of a key does.
const VERSION: &str = "lamina build 1";

/// A key in the making.
pub struct Key(Sha256);

impl Key {
    /// The key of a kind of instruction, on these layers.
    pub fn new(kind: &str, layers: &[DiffId]) -> Self {
        let mut key = Self(Sha256::new());
        key.text(VERSION).text(kind).number(layers.len() as u64);
        for layer in layers {
            key.bytes(&layer.0.0);
        }
        key
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(number.to_le_bytes());
        self
    }

    /// Adds a list of texts.
    pub fn list<'a>(&mut self, list: impl ExactSizeIterator<Item = &'a String>) -> &mut Self {
        self.number(list.len() as u64);
        list.fold(self, |key, text| key.text(text))
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_everything_apart() {
        let key = |texts: &[&str]| {
            let mut key = Key::new("x", &[]);
            for text in texts {
                key.text(text);
            }
            key.finish()
        };
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab"]), key(&["a", "b"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        let layer = DiffId(Digest::of(b"layer"));
        assert_ne!(
            Key::new("x", &[layer]).finish(),
            Key::new("x", &[]).finish()
        );
        assert_ne!(Key::new("y", &[]).finish(), Key::new("x", &[]).finish());
    }
}
