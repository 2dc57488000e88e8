//! What a read-only layer is, and its two kinds.
