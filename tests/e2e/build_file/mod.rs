//! `lamina build`: images from Containerfiles.

mod base;
mod caching;
mod downloads;
mod ending;
mod errors;
mod like_buildah;
mod pulling;
mod running;
