//! What parts of the daemon log while they run in the process of a test.

use std::io;
use std::sync::{Mutex, Once};

use tempfile::NamedTempFile;
use tracing::subscriber::DefaultGuard;

/// What this thread logs, as long as it lives.
pub struct Log {
    lines: NamedTempFile,
    _guard: DefaultGuard,
}

impl Log {
    pub fn of_this_thread() -> Self {
        // Whether anybody wants a line is asked once, for all threads, and of the thread that comes first: without a default
        // that wants it, it would be lost for this one too.
        static DEFAULT: Once = Once::new();
        DEFAULT.call_once(|| {
            let nowhere = tracing_subscriber::fmt().with_writer(io::sink).finish();
            tracing::subscriber::set_global_default(nowhere).unwrap();
        });
        let lines = NamedTempFile::new().unwrap();
        let writer = Mutex::new(lines.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.lines.path()).unwrap()
    }
}
