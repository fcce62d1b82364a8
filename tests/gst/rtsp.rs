//! RTSP as it is, against GStreamer's own server (`rtsp_server.py`): both transports, credentials, a camera that restarts, a
//! stream that is published.
//!
//! The server runs in the system's Python (Debian packages `python3-gi` and `gir1.2-gst-rtsp-server-1.0`; `scripts/setup --test`).
//! Without it the tests print that they were skipped; with `FOVEA_REQUIRE_ORACLE=1` they fail instead.

use super::{Painting, Recorder, SD, file, read, source, stamps, start_error, within_limit};
use fovea::frame::{PixelFormat, Stamps};
use fovea::gst::{open_sink, open_source};
use fovea::pipeline::ports::{SinkError, SourceError};
use fovea::pipeline::spec::{RtspTransport, SinkSpec};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// User and password of a [`Server`] that asks for them, as it is told and as they stand in a URL.
const CREDENTIALS: (&[&str], &str) = (&["watcher", "can@ry:7/"], "watcher:can%40ry%3A7%2F@");

/// Size of what a [`Server`] shows.
const SIZE: (usize, usize) = (64, 48);

/// A server that ends with this value.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// `None` after saying that the test is skipped.
    fn start(taken: &Path, credentials: &[&str]) -> Option<Self> {
        Self::start_as(0, taken, SIZE, credentials)
    }

    /// On a port of choice, with pictures of another size. `port` 0: any.
    fn start_as(port: u16, taken: &Path, size: (usize, usize), credentials: &[&str]) -> Option<Self> {
        Self::start_at("live", port, taken, size, credentials)
    }

    /// Under another path.
    fn start_at(path: &str, port: u16, taken: &Path, size: (usize, usize), credentials: &[&str]) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gst/rtsp_server.py");
        let child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(port.to_string())
            .arg(taken)
            .arg(path)
            .args([size.0.to_string(), size.1.to_string()])
            .args(credentials)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let port = child.and_then(|mut child| {
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line)?;
            match line.trim().parse() {
                Ok(port) => Ok(Self { child, port }),
                Err(_) => Err(std::io::Error::other(format!("it ended with {}", child.wait()?))),
            }
        });
        #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
        let is_required = std::env::var("FOVEA_REQUIRE_ORACLE").is_ok_and(|value| value == "1");
        match port {
            Ok(server) => Some(server),
            Err(error) if is_required => panic!("FOVEA_REQUIRE_ORACLE=1 but there is no RTSP server ({error}); run `make test`"),
            Err(error) => {
                eprintln!("skipped: RTSP against a server ({error}; `scripts/setup --test` installs it)");
                None
            }
        }
    }

    /// Stops it, or lets it go on: its connections stay, and nothing comes.
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn url(&self, credentials: &str, path: &str) -> String {
        format!("rtsp://{credentials}127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Frames whose times do not go back until there are `n` more of them, all of this size.
fn watch(recorder: &Recorder, n: usize, size: (usize, usize)) {
    let before = recorder.record.lock().unwrap().frames.len();
    recorder.wait_until(|record| record.frames.len() >= before + n);
    let record = recorder.record.lock().unwrap();
    // One more may have left the decoder just now.
    let n_known = record.frames.len() + record.dropped.len();
    assert!((n_known..=n_known + 1).contains(&record.captured) && record.end.is_none(), "{record:?}");
    assert!(record.frames[before..].iter().all(|frame| frame.size == size));
    let stamps: Vec<(u64, Duration)> = record.frames.iter().map(|frame| (frame.stamps.id.0, frame.stamps.pts.unwrap())).collect();
    // A server that was asleep sends what it missed at once: times of their arrival.
    assert!(stamps.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{stamps:?}");
}

#[test]
fn a_camera_over_both_transports() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(&folder.path().join("in.ts"), &[]) else { return };
        for transport in [RtspTransport::Tcp, RtspTransport::Udp] {
            let mut spec = source(&server.url("", "live"));
            spec.rtsp_transport = transport;
            let recorder = Recorder::new();
            let mut source = open_source(&spec).unwrap();
            let info = source.start(recorder.clone()).unwrap();
            assert!(info.is_live && (info.width, info.height) == (64, 48), "{info:?}");
            watch(&recorder, 10, SIZE);
            source.stop();
        }
        let error = start_error(&source(&server.url("", "nowhere")));
        assert!(matches!(&error, SourceError::Request(text) if text.contains("no such stream")), "{error:?}");
    });
}

#[test]
fn a_camera_that_asks_for_a_password() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let (told, written) = CREDENTIALS;
        let Some(server) = Server::start(&folder.path().join("in.ts"), told) else { return };
        let recorder = Recorder::new();
        let mut camera = open_source(&source(&server.url(written, "live"))).unwrap();
        camera.start(recorder.clone()).unwrap();
        watch(&recorder, 3, SIZE);
        camera.stop();
        for wrong in ["", "watcher:canary@"] {
            let error = start_error(&source(&server.url(wrong, "live")));
            assert!(matches!(&error, SourceError::Request(text) if text.contains("password")), "{error:?}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    });
}

/// Off, for longer than a frame is waited for, and on again, the second time with pictures of another size; then silent with
/// its connection open.
#[test]
fn a_camera_that_restarts() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("in.ts");
        let Some(server) = Server::start(&taken, &[]) else { return };
        let mut spec = source(&server.url("", "live"));
        (spec.timeout, spec.reconnect) = (Duration::from_secs(2), Some(Duration::from_secs(60)));
        let pause = spec.timeout + Duration::from_secs(1);
        let recorder = Recorder::new();
        let mut camera = open_source(&spec).unwrap();
        camera.start(recorder.clone()).unwrap();
        watch(&recorder, 5, SIZE);
        let (port, mut running) = (server.port, Some(server));
        let larger = (96, 64);
        for (n_restarts, size) in [(1, SIZE), (2, larger)] {
            drop(running.take());
            std::thread::sleep(pause);
            running = Server::start_as(port, &taken, size, &[]);
            recorder.wait_until(|record| record.reconnects >= n_restarts);
            watch(&recorder, 5, size);
        }
        let server = running.unwrap();
        server.signal("-STOP");
        std::thread::sleep(pause);
        server.signal("-CONT");
        recorder.wait_until(|record| record.reconnects >= 3);
        watch(&recorder, 5, larger);
        camera.stop();
    });
}

/// Where it is asked for, a camera that is not there at the start is waited for, be it that a server runs already and knows
/// nothing of it.
#[test]
fn a_camera_that_starts_later() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("in.ts");
        let Some(server) = Server::start(&taken, &[]) else { return };
        let (port, url) = (server.port, server.url("", "live"));
        let mut wrong = source(&server.url("", "nowhere"));
        wrong.reconnect = Some(Duration::from_secs(1));
        let error = start_error(&wrong);
        let is_named = |text: &str| text.contains("no such stream") && text.contains("tried again for 1 s");
        assert!(matches!(&error, SourceError::Stream(text) if is_named(text)), "{error:?}");
        let mut passed_on = source(&server.url("", "later"));
        passed_on.reconnect = Some(Duration::from_secs(60));
        let knows_it_later = std::thread::spawn({
            let taken = taken.clone();
            move || {
                std::thread::sleep(Duration::from_secs(1));
                drop(server);
                Server::start_at("later", port, &taken, SIZE, &[])
            }
        });
        let mut camera = open_source(&passed_on).unwrap();
        let recorder = Recorder::new();
        camera.start(recorder.clone()).unwrap();
        watch(&recorder, 3, SIZE);
        camera.stop();
        drop(knows_it_later.join().unwrap());
        let mut spec = source(&url);
        spec.reconnect = Some(Duration::from_secs(1));
        let error = start_error(&spec);
        assert!(matches!(&error, SourceError::Stream(text) if text.contains("tried again for 1 s")), "{error:?}");
        spec.reconnect = Some(Duration::from_secs(60));
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            Server::start_as(port, &taken, SIZE, &[])
        });
        let recorder = Recorder::new();
        let mut camera = open_source(&spec).unwrap();
        let info = camera.start(recorder.clone()).unwrap();
        assert!(info.is_live && (info.width, info.height) == SIZE, "{info:?}");
        watch(&recorder, 5, SIZE);
        camera.stop();
        assert_eq!(recorder.record.lock().unwrap().reconnects, 0, "it was not lost");
        drop(later.join().unwrap());
    });
}

/// Publishes `n` frames under `url`.
fn publish(url: &str, n: usize) -> Result<(), SinkError> {
    let mut painting = Painting::new(PixelFormat::I420, (64, 48), SD);
    let mut sink = open_sink(&SinkSpec::parse(url, Path::new("")).unwrap())?;
    assert!(!sink.name().contains("canary"), "{}", sink.name());
    sink.start(&painting.info())?;
    for idx in 0..n {
        sink.push(&painting.paint(idx % 30), &stamps(idx), &mut |_| {})?;
    }
    sink.finish()
}

/// Waits until a file grows no more.
fn wait_for_rest(path: &Path) {
    let len = || std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    for _ in 0..40 {
        let before = len();
        std::thread::sleep(Duration::from_millis(500));
        if before > 0 && before == len() {
            return;
        }
    }
    panic!("{}: {} bytes", path.display(), len());
}

#[test]
fn a_stream_is_published_whole() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let (told, written) = CREDENTIALS;
        for (name, told, written) in [("open.ts", &[][..], ""), ("closed.ts", told, written)] {
            let taken = folder.path().join(name);
            let Some(server) = Server::start(&taken, told) else { return };
            publish(&server.url(written, "in"), 30).unwrap();
            wait_for_rest(&taken);
            let (info, record, end) = read(&file(&taken));
            assert_eq!((end, info.width, info.height, record.frames.len()), (Ok(()), 64, 48, 30));
            // Lossy, but the pictures that were pushed.
            for (idx, frame) in record.frames.iter().enumerate() {
                let luma = frame.patches.map(|patch| patch[0]);
                let want = [super::LEFT[0], super::right(idx)[0]];
                assert!(luma.iter().zip(want).all(|(got, want)| (got - f64::from(want)).abs() < 6.0), "{idx}: {luma:?} {want:?}");
            }
        }
    });
}

#[test]
fn servers_that_take_no_stream() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("in.ts");
        // A port that was free a moment ago: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = publish(&format!("rtsp://watcher:canary@127.0.0.1:{port}/in"), 1000).unwrap_err();
        assert!(matches!(&error, SinkError::Write(text) if text.contains("check that it runs")), "{error:?}");
        assert!(error.to_string().contains("127.0.0.1") && !error.to_string().contains("canary"), "{error}");

        let Some(server) = Server::start(&taken, CREDENTIALS.0) else { return };
        for wrong in ["", "watcher:canary@"] {
            let error = publish(&server.url(wrong, "in"), 1000).unwrap_err();
            assert!(matches!(&error, SinkError::Request(text) if text.contains("password")), "{error:?}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
        let error = publish(&server.url(CREDENTIALS.1, "nowhere"), 1000).unwrap_err();
        assert!(matches!(&error, SinkError::Request(text) if text.contains("path") && !text.contains("can@ry")), "{error:?}");
    });
}

/// A server that stays there but closes the connection of who publishes, and listens to the next one without a word.
#[test]
fn a_publisher_that_is_turned_out() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(&folder.path().join("in.ts"), &[]) else { return };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rtsp://127.0.0.1:{}/in", listener.local_addr().unwrap().port());
        let port = server.port;
        std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let server = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let pairs = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client.try_clone().unwrap())];
            for (mut from, mut to) in pairs {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
            std::thread::sleep(Duration::from_secs(2));
            client.shutdown(std::net::Shutdown::Both).unwrap();
            let mut next = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                next.push(stream);
            }
        });
        // More than a minute, if nobody minds.
        let error = publish(&url, 2000).unwrap_err();
        assert!(matches!(error, SinkError::Write(_)), "{error:?}");
    });
}

/// Frames far apart are waited for, also at the end.
#[test]
fn a_slow_stream_takes_its_time() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("in.ts");
        let Some(server) = Server::start(&taken, &[]) else { return };
        let mut painting = Painting::new(PixelFormat::I420, (64, 48), SD);
        let mut sink = open_sink(&SinkSpec::parse(&server.url("", "in"), Path::new("")).unwrap()).unwrap();
        sink.start(&painting.info()).unwrap();
        // The last one is due later than a file may take to be finalised.
        for (idx, seconds) in [(0, 0), (1, 1), (2, 26)] {
            let stamps = Stamps { pts: Some(Duration::from_secs(seconds)), duration: None, ..stamps(idx) };
            sink.push(&painting.paint(idx), &stamps, &mut |_| {}).unwrap();
        }
        sink.finish().unwrap();
        wait_for_rest(&taken);
        assert_eq!(read(&file(&taken)).1.frames.len(), 3);
    });
}

#[test]
fn a_server_that_goes_away_while_it_is_published_to() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(&folder.path().join("in.ts"), &[]) else { return };
        let url = server.url("", "in");
        let end = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            drop(server);
        });
        // More than a minute, if nobody minds.
        let error = publish(&url, 2000).unwrap_err();
        assert!(matches!(error, SinkError::Write(_)), "{error:?}");
        end.join().unwrap();
    });
}
