//! The progress bars of builds, imports, exports and transfers: on a terminal only.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lamina_layers::oci::{IngestProgress, LayerBlob};
use lamina_layers::tar::Progress;

use super::image::short;

/// One bar for each archive, under each other.
pub struct Bars {
    all: Option<MultiProgress>,
}

/// The bar of one archive.
pub struct Bar {
    bar: ProgressBar,
    files: AtomicU64,
}

impl Bars {
    /// Bars if standard error is a terminal.
    pub fn new() -> Self {
        Self {
            all: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// The bar of an archive of `size` bytes, where that is known.
    pub fn bar(&self, name: &str, size: Option<u64>) -> Bar {
        let Some(all) = &self.all else {
            return Bar {
                bar: ProgressBar::hidden(),
                files: AtomicU64::new(0),
            };
        };
        let template = match size {
            Some(_) => "{prefix:20!} {wide_bar} {bytes}/{total_bytes} {msg} {bytes_per_sec} {eta}",
            None => "{prefix:20!} {spinner} {bytes} {msg} {bytes_per_sec}",
        };
        let bar = match size {
            Some(size) => ProgressBar::new(size),
            None => ProgressBar::new_spinner(),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        Bar {
            bar: all.add(bar),
            files: AtomicU64::new(0),
        }
    }
}

/// One bar for each layer of an image that is on its way.
pub struct LayerBars(Bars);

impl LayerBars {
    /// Bars if standard error is a terminal, and somebody wants to see them.
    pub fn new(quiet: bool) -> Self {
        Self(if quiet {
            Bars { all: None }
        } else {
            Bars::new()
        })
    }
}

impl IngestProgress for LayerBars {
    fn start<'a>(&'a self, layer: &LayerBlob) -> Box<dyn Progress + 'a> {
        let name = short(&layer.digest.to_string());
        Box::new(LayerBar(self.0.bar(&name, Some(layer.size))))
    }

    fn stream<'a>(&'a self, name: &str, size: u64) -> Box<dyn Progress + 'a> {
        // The digits say more than the rest.
        let name = name.rsplit(['/', ':']).next().unwrap_or(name);
        Box::new(LayerBar(self.0.bar(&short(name), Some(size))))
    }

    fn present(&self, layer: &LayerBlob) {
        if let Some(all) = &self.0.all {
            let name = short(&layer.digest.to_string());
            // Bars are for people: without a terminal there is nobody to miss a line.
            let _ = all.println(format!("{name:20} is there"));
        }
    }
}

/// Ends with what it is about.
struct LayerBar(Bar);

impl Drop for LayerBar {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Progress for LayerBar {
    fn bytes(&self, count: u64) {
        self.0.bytes(count);
    }

    fn file(&self) {
        self.0.file();
    }
}

impl Bar {
    /// Ends the bar and leaves it on the screen.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

impl Progress for Bar {
    fn bytes(&self, count: u64) {
        self.bar.inc(count);
    }

    fn file(&self) {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        if files.is_multiple_of(64) {
            self.bar.set_message(format!("{files} files"));
        }
    }
}
