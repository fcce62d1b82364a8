//! Ctrl-C and its kin: SIGINT, SIGTERM, and SIGHUP of a terminal that is closed.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::thread;

/// Calls `handler` at each interrupt, on a thread of its own. A signal that was ignored when the program started stays
/// ignored: that is how `nohup`, and a script's `&`, keep a program going.
///
/// # Errors
/// What the system says when signals cannot be caught.
pub fn on_interrupt(mut handler: impl FnMut() + Send + 'static) -> io::Result<()> {
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_signals(&status));
    let caught = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(caught)?;
    let body = move || signals.forever().for_each(|_| handler());
    thread::Builder::new().name("signals".to_owned()).spawn(body).map(drop)
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
    fn the_mask_is_read_from_the_status() {
        let status = "Name:\tfovea\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        assert_eq!(ignored_signals(status), 0x1001);
        assert_eq!(ignored_signals("Name:\tfovea\n"), 0);
    }
}
