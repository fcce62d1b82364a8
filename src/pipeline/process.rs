//! What the process has used so far, as the kernel counts it.

use super::clock::process_cpu_time;
use std::fs;

/// Processor time and memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessFigures {
    /// User and system time of all threads; `None` where the system does not say.
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
            cpu_seconds: Some(process_cpu_time().as_secs_f64()).filter(|seconds| *seconds > 0.0),
            rss_bytes: kilobytes(&status, "VmRSS:"),
            peak_rss_bytes: kilobytes(&status, "VmHWM:"),
        }
    }
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
        assert_eq!(kilobytes("Name:\tx\nVmRSS:\t    1024 kB\n", "VmRSS:"), Some(1_048_576));
        let figures = ProcessFigures::now();
        if cfg!(target_os = "linux") {
            assert!(figures.cpu_seconds.is_some() && figures.rss_bytes.is_some_and(|bytes| bytes > 100_000), "{figures:?}");
        }
    }
}
