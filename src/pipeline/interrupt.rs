//! Ctrl-C and its kin: SIGINT, SIGTERM, and SIGHUP of a terminal that is closed.

use super::clock::Stopwatch;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::thread;
use std::time::Duration;

/// Within this time one request to end may come as several signals: a shell hangs up its jobs, and then the system does so too.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// Calls `handler` at each interrupt, on a thread of its own. A signal that was ignored when the program started stays
/// ignored: that is how `nohup`, and a script's `&`, keep a program going.
///
/// # Errors
/// What the system says when signals cannot be caught.
pub fn on_interrupt(mut handler: impl FnMut() + Send + 'static) -> io::Result<()> {
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_signals(&status));
    let caught = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(caught)?;
    let body = move || {
        let mut since_last: Option<Stopwatch> = None;
        for signal in signals.forever() {
            if is_request(signal, since_last.as_mut().map(Stopwatch::lap)) {
                handler();
            }
            since_last.get_or_insert_with(Stopwatch::start);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(body).map(drop)
}

/// Whether a signal is a request of its own, so long after the one before. Whoever presses Ctrl-C twice means it.
fn is_request(signal: i32, since_last: Option<Duration>) -> bool {
    signal == SIGINT || since_last.is_none_or(|passed| passed > ONE_REQUEST)
}

/// The mask of ignored signals in a text of `/proc/PID/status`; bit 0 is signal 1.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_terminal_is_one_request() {
        let (soon, later) = (Some(Duration::from_millis(3)), Some(Duration::from_secs(2)));
        for (signal, since_last, wanted) in [
            (SIGHUP, None, true),
            (SIGHUP, soon, false),
            (SIGTERM, soon, false),
            (SIGTERM, later, true),
            (SIGINT, None, true),
            (SIGINT, soon, true),
        ] {
            assert_eq!(is_request(signal, since_last), wanted, "{signal} {since_last:?}");
        }
    }

    #[test]
    fn the_mask_is_read_from_the_status() {
        let status = "Name:\tfovea\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        assert_eq!(ignored_signals(status), 0x1001);
        assert_eq!(ignored_signals("Name:\tfovea\n"), 0);
    }
}
