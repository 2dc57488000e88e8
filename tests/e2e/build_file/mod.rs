//! `lamina build`: images from Containerfiles.

pub mod base;
mod caching;
mod downloads;
mod ending;
mod errors;
mod like_buildah;
mod pulling;
mod running;
