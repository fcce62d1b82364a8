//! What GStreamer reports as what the user needs to know: what, where, and what to do about it, without credentials.

use super::elements;
use crate::pipeline::ports::{SinkError, SourceError};
use crate::pipeline::secret::SecretUrl;
use crate::pipeline::spec::{SinkSpec, SourceKind, SourceSpec};
use gstreamer as gst;
use gstreamer::glib;

/// Takes credentials out of texts.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrubber {
    urls: Vec<SecretUrl>,
}

impl Scrubber {
    /// Knows the secrets of a source.
    pub(super) fn new(spec: &SourceSpec) -> Self {
        let urls = match &spec.kind {
            SourceKind::Url(url) => vec![url.clone()],
            SourceKind::Launch(text) => secrets_of_launch(text),
            _ => Vec::new(),
        };
        Self { urls }
    }

    /// `text` without them, on one line.
    pub(super) fn scrub(&self, text: &str) -> String {
        let text = self.urls.iter().fold(text.to_owned(), |text, url| url.scrub(&text));
        without_user_info(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// URLs of a pipeline text, and what it gives for users and passwords, as URLs that hide them.
fn secrets_of_launch(text: &str) -> Vec<SecretUrl> {
    let mut secrets = Vec::new();
    let text = without_spaces_around_equals(text);
    for word in text.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let value = value.trim_matches(['"', '\'']);
        if value.contains("://") {
            secrets.push(SecretUrl::new(value.to_owned()));
        } else if ["user-id", "user-pw", "proxy-id", "proxy-pw", "passphrase", "password"].contains(&key) {
            secrets.push(SecretUrl::new(format!("x://{value}@")));
        }
    }
    secrets
}

/// `key = value` as `key=value`.
fn without_spaces_around_equals(text: &str) -> String {
    let mut parts = text.split('=');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| format!("{}={}", joined.trim_end(), part.trim_start()))
}

/// `text` with user and password of every URL in it hidden.
pub(super) fn without_user_info(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        out.push_str(before);
        let authority_len = after.find(|c: char| c == '/' || c == '"' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..authority_len].rfind('@') {
            Some(at) => {
                out.push_str("***");
                &after[at..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    out
}

/// An error message of GStreamer, and what else was said before it.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// Domain, code and text.
    pub(super) error: glib::Error,
    /// Where in GStreamer, and what the system said.
    pub(super) debug: Option<glib::GString>,
    /// Name of the element.
    pub(super) element: String,
    /// Descriptions and caps of decoders that were not found.
    pub(super) missing: &'a [(String, String)],
}

impl Report<'_> {
    fn said(&self) -> String {
        said(&self.error, self.debug.as_deref())
    }

    /// Whether a server refuses user and password.
    pub(super) fn is_unauthorized(&self, scrubber: &Scrubber) -> bool {
        is_unauthorized(&self.error, &scrubber.scrub(&self.said()))
    }

    /// decodebin calls a decoder missing when none leads to video, be it that there is only sound.
    fn has_only_sound(&self, said: &str) -> bool {
        self.is_missing_plugin() && self.missing.is_empty() && said.contains("(audio/") && !said.contains("(video/")
    }

    fn is_missing_plugin(&self) -> bool {
        missing_video(self.missing).is_some()
            || self.error.matches(gst::CoreError::MissingPlugin)
            || self.error.matches(gst::StreamError::CodecNotFound)
    }

    /// What came is a text, not a stream: what a camera answers where it wants a login.
    fn is_page(&self) -> bool {
        missing_video(self.missing).is_none() && self.missing.iter().any(|(_, detail)| detail.contains("text/"))
    }

    fn missing_plugin(&self, said: &str) -> String {
        let Some((description, detail)) = missing_video(self.missing).or(self.missing.first()) else {
            return format!(
                "a plugin of GStreamer is missing ({said}); install the usual ones: sudo apt install gstreamer1.0-plugins-good \
                 gstreamer1.0-plugins-bad gstreamer1.0-libav"
            );
        };
        let package = elements::package_for_codec(description, detail);
        format!("GStreamer has no plugin for it (missing: {description}); install it: sudo apt install {package}")
    }
}

/// The first decoder of pictures among those that were not found. One for data beside them, such as the metadata of security
/// cameras, is not missed.
pub(super) fn missing_video(missing: &[(String, String)]) -> Option<&(String, String)> {
    missing.iter().find(|(_, detail)| detail.contains("video/") || detail.contains("image/"))
}

/// The text of a message, and of its debug text what the system or the peer said: not the lines that name GStreamer's
/// own code.
pub(super) fn said(error: &glib::Error, debug: Option<&str>) -> String {
    let is_code = |line: &str| line.contains(".c(") || line.contains(".cpp(") || line.contains("/GstPipeline:");
    let lines = error.message().lines().chain(debug.unwrap_or_default().lines());
    let mut said: Vec<&str> = Vec::new();
    for line in lines.filter(|line| !is_code(line)).map(|line| line.trim().trim_end_matches(['.', ':'])) {
        if !line.is_empty() && !said.contains(&line) {
            said.push(line);
        }
    }
    said.join(": ")
}

/// What an error means for a source.
pub(super) fn source_error(spec: &SourceSpec, scrubber: &Scrubber, report: &Report<'_>) -> SourceError {
    let mut said = scrubber.scrub(&report.said());
    let is_silent = said.starts_with(NO_DATA);
    if is_silent && matches!(spec.kind, SourceKind::Url(_)) {
        "no data came".clone_into(&mut said);
    }
    let request = |text: String| SourceError::Request(format!("{spec}: {text}"));
    let stream = |text: String| SourceError::Stream(format!("{spec}: {text}"));
    if report.has_only_sound(&said) {
        return request("it holds sound but no video; give a file or stream with a picture".into());
    }
    if report.is_missing_plugin() && report.is_page() {
        let what = report.missing.iter().map(|(description, _)| description.as_str()).collect::<Vec<_>>().join(", ");
        return request(format!(
            "this is no video ({what}): a server may send a page where it wants a login; check the path, and user and password"
        ));
    }
    if report.is_missing_plugin() {
        return stream(report.missing_plugin(&said));
    }
    let error = &report.error;
    match &spec.kind {
        SourceKind::Url(_) if is_unauthorized(error, &said) => {
            request(format!("the server refuses the user or password ({said}); {CREDENTIALS}"))
        }
        SourceKind::Url(_) if error.matches(gst::ResourceError::NotFound) || said.contains("Not Found") => {
            let text = format!(
                "the server has no such stream or cannot be found ({said}); check host and path of the URL, the camera's manual \
                 names the path"
            );
            // A server that passes streams on has none until its camera is there.
            if spec.start_limit().is_some() { stream(text) } else { request(text) }
        }
        SourceKind::Url(_) if is_silent || error.is::<gst::ResourceError>() => stream(format!(
            "the connection failed ({said}); check that the device is on, that host and port are right and that no firewall is \
             between; for rtsp, try the other transport (tcp or udp)"
        )),
        SourceKind::V4l2 { device, .. } | SourceKind::File(device) if error.matches(gst::ResourceError::NotFound) => {
            request(format!("there is nothing usable at {} ({said}); check the path", device.display()))
        }
        SourceKind::V4l2 { device, .. } if error.is::<gst::ResourceError>() => {
            let device = device.display();
            stream(format!(
                "the camera cannot be used ({said}); `fuser -v {device}` (package psmisc) shows a program that holds it, \
                 `v4l2-ctl -d {device} --list-formats-ext` (package v4l-utils) the sizes and rates that it has, and your user must be in the group `video`"
            ))
        }
        SourceKind::V4l2 { device, .. } if is_format_trouble(error, &said) => request(format!(
            "the camera does not have this size and rate ({said}); `v4l2-ctl -d {} --list-formats-ext` lists what it has",
            device.display()
        )),
        SourceKind::Libcamera { .. } => stream(format!(
            "the camera does not start ({said}); `rpicam-hello --list-cameras` (or `cam -l`) must list it, no other program may \
             use it, and the size must be one that it has"
        )),
        SourceKind::Csi { .. } => stream(format!(
            "the camera does not start ({said}); check the ribbon cable and the sensor number, restart the service with `sudo \
             systemctl restart nvargus-daemon`, and ask for a size that the sensor has"
        )),
        SourceKind::Launch(_) => stream(format!(
            "the pipeline text failed in element {} ({said}); try it alone: gst-launch-1.0 TEXT ! fakesink",
            report.element
        )),
        _ if error.matches(gst::StreamError::TypeNotFound) || error.matches(gst::StreamError::WrongType) => {
            request(format!("this is not a video that can be read ({said}); give a file such as .mp4, .mkv, .avi or .ts"))
        }
        SourceKind::File(_) if error.is::<gst::ResourceError>() => {
            stream(format!("the file cannot be read ({said}); check that it is readable and whole"))
        }
        _ => stream(format!(
            "the stream is damaged or cut off ({said}); frames up to here were used; `ffprobe` or `gst-discoverer-1.0` may tell \
             more"
        )),
    }
}

/// What a source says that got nothing from the network and does not know why.
const NO_DATA: &str = "Internal data stream error";

fn is_format_trouble(error: &glib::Error, said: &str) -> bool {
    error.matches(gst::CoreError::Negotiation) || error.matches(gst::StreamError::Format) || said.contains("not-negotiated")
}

/// Whether a server refuses what it was told of user and password. RTSP elements report it as a general failure to open.
fn is_unauthorized(error: &glib::Error, said: &str) -> bool {
    error.matches(gst::ResourceError::NotAuthorized) || said.contains("Unauthorized") || said.contains("(401)")
}

/// What helps where a server refuses user and password.
const CREDENTIALS: &str =
    "write them as rtsp://USER:PASSWORD@HOST/…, with special characters percent-encoded (@ is %40, : is %3A, / is %2F)";

/// What an error means for a sink.
pub(super) fn sink_error(spec: &SinkSpec, report: &Report<'_>) -> SinkError {
    let said = match spec {
        SinkSpec::Stream(url) => Scrubber { urls: vec![url.clone()] }.scrub(&report.said()),
        _ => Scrubber::default().scrub(&report.said()),
    };
    let error = &report.error;
    if matches!(spec, SinkSpec::Stream(_)) {
        return stream_sink_error(spec, &said, report);
    }
    if error.matches(gst::ResourceError::NoSpaceLeft) || said.contains("No space left") {
        return SinkError::Write(format!(
            "{spec}: the disk is full ({said}); what was written so far can be played, from a \
             second on; make room or write elsewhere"
        ));
    }
    if *spec == SinkSpec::Display {
        return SinkError::Write(format!(
            "display: the picture cannot be shown ({said}); if the window was closed, all is well; else write a file with --sink \
             out.mp4"
        ));
    }
    if error.matches(gst::ResourceError::OpenWrite) {
        return SinkError::Request(format!("{spec}: the file cannot be written ({said}); check folder and permissions"));
    }
    SinkError::Write(format!(
        "{spec}: writing failed in element {} ({said}); what was written so far can be played, from a second on",
        report.element
    ))
}

fn stream_sink_error(spec: &SinkSpec, said: &str, report: &Report<'_>) -> SinkError {
    let error = &report.error;
    if is_unauthorized(error, said) {
        return SinkError::Request(format!("{spec}: the server refuses the user or password ({said}); {CREDENTIALS}"));
    }
    if error.matches(gst::ResourceError::NotFound) || said.contains("Not Found") {
        return SinkError::Request(format!(
            "{spec}: the server takes no stream under this path, or cannot be found ({said}); check host and path of the URL"
        ));
    }
    if error.is::<gst::ResourceError>() && report.element.starts_with("rtspclientsink") {
        return SinkError::Write(format!(
            "{spec}: the server does not take the stream ({said}); check that it runs, that host and port are right and that \
             streams may be published under this path"
        ));
    }
    SinkError::Write(format!("{spec}: the stream ended in element {} ({said})", report.element))
}

/// Whether a warning of a sink means that its stream is over: the server closed the connection.
pub(super) fn ends_stream(spec: &SinkSpec, report: &Report<'_>) -> bool {
    let is_sink = report.element.starts_with("rtspclientsink");
    matches!(spec, SinkSpec::Stream(_)) && is_sink && report.error.matches(gst::ResourceError::Read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn report(error: glib::Error, debug: &str) -> Report<'static> {
        Report { error, debug: Some(debug.into()), element: "source".into(), missing: &[] }
    }

    #[test]
    fn the_remedy_for_credentials_is_not_taken_for_one() {
        use crate::pipeline::secret::hide_credentials;
        assert_eq!(hide_credentials(CREDENTIALS), CREDENTIALS);
    }

    #[test]
    fn user_info_is_hidden_anywhere() {
        for (text, want) in [
            ("open rtsp://me:canary@host:554/1 failed", "open rtsp://***@host:554/1 failed"),
            ("a http://canary@h b https://x:canary@y", "a http://***@h b https://***@y"),
            ("nothing at file:///video/a@b.mp4", "nothing at file:///video/a@b.mp4"),
            ("", ""),
        ] {
            assert_eq!(without_user_info(text), want);
        }
    }

    #[test]
    fn secrets_of_pipeline_texts() {
        let text = "rtspsrc location=rtsp://h/1?token=canary1 user-id=\"admin\" user-pw=canary2 ! decodebin";
        let apart = "souphttpsrc location = http://h/1?token=canary1 user-id =admin user-pw= 'canary2' ! decodebin";
        let scrubber = Scrubber::new(&SourceSpec::new(SourceKind::Launch(apart.into())));
        let scrubbed = scrubber.scrub("canary1, admin and canary2 for http://h/1?token=canary1");
        assert!(!scrubbed.contains("canary") && !scrubbed.contains("admin"), "{scrubbed}");
        let scrubber = Scrubber::new(&SourceSpec::new(SourceKind::Launch(text.into())));
        let scrubbed = scrubber.scrub("could not set canary1 as admin, canary2\n in rtsp://h/1?token=canary1");
        assert!(!scrubbed.contains("canary") && !scrubbed.contains("admin") && !scrubbed.contains('\n'), "{scrubbed}");
    }

    #[test]
    fn errors_name_what_where_and_remedy() {
        let url = SourceKind::Url(SecretUrl::new("rtsp://me:canary@cam:554/1".into()));
        let file = SourceKind::File(PathBuf::from("/x/street.avi"));
        let camera = SourceKind::V4l2 { device: "/dev/video7".into(), mode: Default::default() };
        let refused = glib::Error::new(gst::ResourceError::OpenRead, "Could not open rtsp://me:canary@cam:554/1.");
        let unauthorized = glib::Error::new(gst::ResourceError::NotAuthorized, "Unauthorized");
        let text_file = glib::Error::new(gst::StreamError::WrongType, "This appears to be a text file");
        let busy = glib::Error::new(gst::ResourceError::Busy, "Device is busy");
        let door = SourceKind::Url(SecretUrl::new("http://cam:8080/door401".into()));
        let unavailable =
            glib::Error::new(gst::ResourceError::OpenRead, "Service Unavailable (503), URL: http://cam:8080/door401");
        let forbidden = glib::Error::new(gst::ResourceError::Failed, "Could not open: Authentication required (401)");
        for (kind, error, is_request, words) in [
            (&url, refused, false, ["rtsp://***@cam", "firewall"]),
            (&url, unauthorized, true, ["password", "%40"]),
            (&door, forbidden, true, ["password", "%40"]),
            (&door, unavailable, false, ["503", "connection failed"]),
            (&file, text_file, true, ["/x/street.avi", "not a video"]),
            (&camera, busy, false, ["/dev/video7", "fuser"]),
        ] {
            let spec = SourceSpec::new(kind.clone());
            let debug = match kind {
                SourceKind::Url(url) if url.credentials().is_some() => {
                    "gstrtspsrc.c(7): open (): /GstPipeline:p:\nConnection refused to me:canary@cam."
                }
                _ => "gstrtspsrc.c(7): open (): /GstPipeline:p:\nfailed",
            };
            let report = report(error, debug);
            let error = source_error(&spec, &Scrubber::new(&spec), &report);
            assert_eq!(matches!(error, SourceError::Request(_)), is_request, "{error}");
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(!text.contains("canary") && !text.contains('\n') && !text.contains("gstrtspsrc.c"), "{text}");
        }
    }

    #[test]
    fn errors_of_a_published_stream() {
        let spec = SinkSpec::Stream(SecretUrl::new("rtsp://me:canary@host:8554/in?token=canary2".into()));
        let with = |element: &str, error: glib::Error| {
            let debug = "gstrtspclientsink.c(7): open (): /GstPipeline:p:\nrtsp://host:8554/in?token=canary2 and me:canary@host";
            Report { element: element.into(), ..report(error, debug) }
        };
        let failed = || glib::Error::new(gst::ResourceError::OpenWrite, "Failed to connect.");
        for (element, error, is_request, word) in [
            ("rtspclientsink0", failed(), false, "check that it runs"),
            ("rtspclientsink0", glib::Error::new(gst::ResourceError::OpenWrite, "Unauthorized"), true, "password"),
            ("rtspclientsink0", glib::Error::new(gst::ResourceError::NotFound, "Not Found (404)"), true, "path"),
            ("v4l2h264enc0", failed(), false, "in element v4l2h264enc0"),
        ] {
            let error = sink_error(&spec, &with(element, error));
            assert_eq!(matches!(error, SinkError::Request(_)), is_request, "{error}");
            let text = error.to_string();
            assert!(text.contains(word) && !text.contains("canary") && !text.contains("played"), "{text}");
        }
        let closed = || glib::Error::new(gst::ResourceError::Read, "The server closed the connection.");
        assert!(ends_stream(&spec, &with("rtspclientsink0", closed())));
        assert!(!ends_stream(&spec, &with("rtspclientsink0", glib::Error::new(gst::ResourceError::Settings, "Latency."))));
        assert!(!ends_stream(&SinkSpec::Display, &with("rtspclientsink0", closed())));
    }

    #[test]
    fn missing_decoders_name_the_package() {
        let data = ("metadata decoder".to_owned(), "application/x-onvif-metadata".to_owned());
        let refused = glib::Error::new(gst::ResourceError::NotAuthorized, "Unauthorized");
        let report = Report { error: refused, debug: None, element: "source".into(), missing: std::slice::from_ref(&data) };
        let url = SourceSpec::new(SourceKind::Url(SecretUrl::new("rtsp://cam/1".into())));
        let text = source_error(&url, &Scrubber::default(), &report).to_string();
        assert!(text.contains("password") && report.is_unauthorized(&Scrubber::default()), "{text}");
        let missing = [data, ("H.265 decoder".to_owned(), "video/x-h265".to_owned())];
        let error = glib::Error::new(gst::StreamError::CodecNotFound, "Your GStreamer installation is missing a plug-in.");
        let report = Report { error, debug: None, element: "decodebin".into(), missing: &missing };
        let spec = SourceSpec::new(SourceKind::File("a.mp4".into()));
        let text = source_error(&spec, &Scrubber::default(), &report).to_string();
        assert!(text.contains("H.265") && text.contains("gstreamer1.0-libav"), "{text}");
    }
}
