//! What the process has used so far, as the kernel counts it.

use std::fs;

/// Clock ticks per second in `/proc`: fixed at 100 by the kernel's interface to programs (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time and memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessFigures {
    /// User and system time of all threads; `None` where there is no `/proc`.
    pub cpu_seconds: Option<f64>,
    /// Memory in use.
    pub rss_bytes: Option<u64>,
    /// The most memory that was in use.
    pub peak_rss_bytes: Option<u64>,
}

impl ProcessFigures {
    /// The figures at this moment.
    #[must_use]
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_seconds: fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_seconds),
            rss_bytes: kilobytes(&status, "VmRSS:"),
            peak_rss_bytes: kilobytes(&status, "VmHWM:"),
        }
    }
}

/// Fields 14 and 15 of `stat`, counted behind the program's name, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1234 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(kilobytes("Name:\tx\nVmRSS:\t    1024 kB\n", "VmRSS:"), Some(1_048_576));
        let figures = ProcessFigures::now();
        if cfg!(target_os = "linux") {
            assert!(figures.cpu_seconds.is_some() && figures.rss_bytes.is_some_and(|bytes| bytes > 100_000), "{figures:?}");
        }
    }
}
