//! URLs that may hold credentials: they are handed to the library that connects, and never printed.

use std::fmt;
use std::ops::Range;

/// What stands in for a credential.
const REDACTED: &str = "***";

/// A URL whose user, password and query are not shown by `Display` and `Debug`, nor what its path gives as such.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps a URL.
    #[must_use]
    pub const fn new(url: String) -> Self {
        Self(url)
    }

    /// The URL as it was given, credentials and all: only for the library that connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// User and password as the URL spells them (percent-encoded); `None` where it has none.
    #[must_use]
    pub fn credentials(&self) -> Option<(&str, &str)> {
        // `udp://@239.0.0.1` is an address to listen at.
        let user_info = self.user_info().filter(|user_info| !user_info.is_empty())?;
        Some(user_info.split_once(':').unwrap_or((user_info, "")))
    }

    /// User and password, percent-decoded: only for the library that connects.
    #[must_use]
    pub fn plain_credentials(&self) -> Option<(String, String)> {
        self.credentials().map(|(user, password)| (percent_decoded(user), percent_decoded(password)))
    }

    /// The URL without user and password, for a library that takes them apart. Still to be kept out of messages: the
    /// query may hold secrets too.
    #[must_use]
    pub fn without_credentials(&self) -> String {
        match (self.0.split_once("://"), self.user_info()) {
            (Some((scheme, rest)), Some(user_info)) => format!("{scheme}://{}", &rest[user_info.len() + 1..]),
            _ => self.0.clone(),
        }
    }

    /// `text` with everything secret of this URL replaced, as it is spelt and percent-decoded: for messages of
    /// libraries that quote what they were given.
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        let mut secrets = vec![self.0.clone()];
        if let Some((user, password)) = self.credentials() {
            secrets.push(format!("{user}:{password}@"));
            secrets.extend([password, user].into_iter().flat_map(|secret| [percent_decoded(secret), secret.to_owned()]));
        }
        if let Some((hidden, _)) = self.0.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')) {
            secrets.push(hidden.to_owned());
        }
        if let Some((_, query)) = self.without_credentials().split_once('?') {
            secrets.push(query.to_owned());
            for value in query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value) {
                secrets.extend([percent_decoded(value), value.to_owned()]);
            }
        }
        let bare = self.without_credentials();
        secrets
            .extend(secrets_of_path(&bare).into_iter().flat_map(|at| [percent_decoded(&bare[at.clone()]), bare[at].to_owned()]));
        // A short value ("1", "tcp") hides nothing and would shred the message.
        secrets.retain(|secret| secret.chars().count() > 3);
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let shown = self.to_string();
        secrets.iter().fold(text.to_owned(), |text, secret| {
            text.replace(secret.as_str(), if *secret == self.0 { shown.as_str() } else { REDACTED })
        })
    }

    /// Between `://` and the `@` before the host. A password may hold `/`, `?` or `#` that somebody forgot to encode.
    fn user_info(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let is_host =
            |text: &str| text.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|b| b.is_ascii_digit() || b == b']'));
        let before_query = rest.split(['?', '#']).next().unwrap_or(rest);
        let authority = rest.split_once('/').map_or(before_query, |(authority, _)| authority);
        match authority.rsplit_once('@') {
            Some((user_info, host)) if is_host(host) => return Some(user_info),
            // What follows is a path, which may hold an `@` too.
            None if is_host(authority) => return None,
            _ => {}
        }
        before_query.rsplit_once('@').or_else(|| rest.rsplit_once('@')).map(|(user_info, _)| user_info)
    }
}

/// Everything up to the last `@` is hidden, whether it was understood as a password or not.
impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.without_credentials();
        let (scheme, rest) = url.split_once("://").map_or(("", url.as_str()), |(scheme, rest)| (scheme, rest));
        let separator = if url.contains("://") { "://" } else { "" };
        let (before, rest) = rest.rsplit_once('@').map_or((None, rest), |(before, rest)| (Some(before), rest));
        if before.is_some_and(|before| before.contains(['?', '#'])) {
            // What follows may belong to a query or to a host.
            return write!(f, "{scheme}{separator}{REDACTED}");
        }
        let has_user_info = before.or(self.user_info()).is_some_and(|user_info| !user_info.is_empty());
        let user_info = if has_user_info { "***@" } else { "" };
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
        write!(f, "{scheme}{separator}{user_info}")?;
        let mut shown_to = 0;
        for secret in secrets_of_path(rest) {
            write!(f, "{}{REDACTED}", &rest[shown_to..secret.start])?;
            shown_to = secret.end;
        }
        write!(f, "{}{query}", &rest[shown_to..])
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUrl({self})")
    }
}

/// Keys of a path whose values are secret: `/user=admin_password=canary_channel=1_stream=0.sdp` is how many recorders want it.
const SECRET_KEYS: [&str; 9] = ["user", "username", "usr", "password", "passwd", "pass", "pwd", "authbasic", "token"];

/// Where in a text before its query such values stand. One ends at the next separator, or where `_` begins the next key.
fn secrets_of_path(text: &str) -> Vec<Range<usize>> {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    let mut secrets: Vec<Range<usize>> = Vec::new();
    let end_of_path = text.find('?').unwrap_or(text.len());
    for (at, _) in text[..end_of_path].match_indices('=') {
        let key_at = text[..at].rfind(|c| !is_word(c)).map_or(0, |before| before + 1);
        let is_within = secrets.last().is_some_and(|last| key_at < last.end);
        if is_within || !SECRET_KEYS.contains(&text[key_at..at].to_ascii_lowercase().as_str()) {
            continue;
        }
        let value = &text[at + 1..end_of_path];
        let begins_key = |from: usize| {
            let key = &value[from + 1..];
            let len = key.find(|c| !is_word(c)).unwrap_or(key.len());
            len > 0 && key[len..].starts_with('=')
        };
        let ends = |(idx, c): &(usize, char)| matches!(c, '&' | ';' | '/' | '#') || *c == '_' && begins_key(*idx);
        let len = value.char_indices().find(ends).map_or(value.len(), |(idx, _)| idx);
        secrets.push(at + 1..at + 1 + len);
    }
    secrets
}

/// How messages say where user and password go.
const USER_PASSWORD: &str = "USER:PASSWORD@";

/// Schemes of what is on this machine: nothing in such a URL is secret.
const LOCAL_SCHEMES: [&str; 5] = ["file", "v4l2", "libcamera", "csi", "test"];

/// `text` with every URL in it shown as [`SecretUrl`] shows it, and with what looks like user and password of a URL without a
/// scheme hidden: for messages that quote what a user wrote.
#[must_use]
pub fn hide_credentials(text: &str) -> String {
    let ends_word = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    // What follows a URL in a sentence is not of it.
    let is_after = |c: char| ends_word(c) || matches!(c, ':' | ',' | ';' | ')');
    let words = text.split_inclusive(ends_word).map(|part| part.split_at(part.trim_end_matches(is_after).len()));
    words.fold(String::with_capacity(text.len()), |hidden, (word, end)| hidden + &hide_in_word(word) + end)
}

/// The same for a text that is one URL, or none: its password may hold spaces and quotes.
#[must_use]
pub fn hide_in_word(word: &str) -> String {
    let is_local = |(scheme, rest): (&str, &str)| {
        let scheme = scheme.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        LOCAL_SCHEMES.contains(&scheme) && (rest.starts_with('/') || !rest.contains('@'))
    };
    match (word.split_once("://"), word.rsplit_once('@')) {
        (Some(parts), _) if is_local(parts) || word.contains(USER_PASSWORD) => word.to_owned(),
        (Some(_), _) => SecretUrl::new(word.to_owned()).to_string(),
        (None, Some((before, host))) if may_be_password(before) => format!("{REDACTED}@{host}"),
        (None, _) => word.to_owned(),
    }
}

/// Whether what stands before an `@` may be a user and a password. A path may have a colon in another folder.
fn may_be_password(text: &str) -> bool {
    let searched = if text.starts_with(['/', '.']) { text.rsplit('/').next().unwrap_or_default() } else { text };
    searched.contains(':')
}

pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_shown() {
        for (url, shown, password) in [
            ("rtsp://admin:canary%2F7@10.0.0.2:554/ch1", "rtsp://***@10.0.0.2:554/ch1", Some("canary%2F7")),
            ("rtsp://admin:can/ary@10.0.0.2/ch1", "rtsp://***@10.0.0.2/ch1", Some("can/ary")),
            ("rtsp://admin:canary#1@127.0.0.1:9/ch1", "rtsp://***@127.0.0.1:9/ch1", Some("canary#1")),
            ("rtsp://admin:canary?1@127.0.0.1:9/ch1?a=b", "rtsp://***@127.0.0.1:9/ch1?***", Some("canary?1")),
            ("rtsp://admin:canary#1@127.0.0.1", "rtsp://***@127.0.0.1", Some("canary#1")),
            ("rtsp://admin:can/ary#1@host/ch1", "rtsp://***@host/ch1", Some("can/ary#1")),
            ("rtsp://admin:can?a/ry@host/ch1", "rtsp://***@host/ch1", Some("can?a/ry")),
            ("rtsp://me@mail.org:can/ary@host/ch1", "rtsp://***@host/ch1", None),
            ("rtsp://admin:can@ary@[::1]:554/ch1", "rtsp://***@[::1]:554/ch1", Some("can@ary")),
            ("rtsp://canary@host", "rtsp://***@host", Some("")),
            ("rtsp://host/ch1?user=admin&password=canary", "rtsp://host/ch1?***", None),
            ("rtsp://host/ch1?user=me@home&password=canary", "rtsp://***", None),
            ("rtsp://me:1/canary?2@host/ch1", "rtsp://***", None),
            ("rtsp://host/ch1", "rtsp://host/ch1", None),
            (
                "rtsp://10.0.0.7:554/user=admin_password=can_ary_channel=1_stream=0.sdp?real_stream",
                "rtsp://10.0.0.7:554/user=***_password=***_channel=1_stream=0.sdp?***",
                None,
            ),
            ("rtsp://host/user=admin&Password=canary&channel=1", "rtsp://host/user=***&Password=***&channel=1", None),
            ("rtsp://host/password=/ch=1/bypass=1", "rtsp://host/password=***/ch=1/bypass=1", None),
            ("udp://@239.1.1.1:5000", "udp://239.1.1.1:5000", None),
            // Indistinguishable from a password with a slash in it: hidden, and left in place for the library.
            ("http://host:8080/a@b.mp4", "http://***@b.mp4", None),
        ] {
            let secret = SecretUrl::new(url.into());
            assert_eq!(secret.to_string(), shown);
            assert_eq!(format!("{secret:?}"), format!("SecretUrl({shown})"));
            assert_eq!(secret.expose(), url);
            assert_eq!(secret.scrub(&format!("no {url}!")), format!("no {shown}!"));
            if let Some(password) = password {
                assert_eq!(secret.credentials().unwrap().1, password, "{url}");
            }
        }
        assert_eq!(SecretUrl::new("http://host:8080/a@b.mp4".into()).without_credentials(), "http://host:8080/a@b.mp4");
    }

    #[test]
    fn urls_within_text() {
        for (text, hidden) in [
            ("invalid: \"rtsp://a:canary@h/1\", or http://b@i", "invalid: \"rtsp://***@h/1\", or http://***@i"),
            ("uri=rtsp://a:canary@h", "uri=rtsp://***@h"),
            ("uri=rtsp://a:canary#1?2@h/x", "uri=rtsp://***@h/x"),
            ("no url: //", "no url: //"),
            ("cannot read me:can@ary@h/1: gone", "cannot read ***@h/1: gone"),
            ("write rtsp://USER:PASSWORD@HOST/", "write rtsp://USER:PASSWORD@HOST/"),
            ("cannot read rtsp//me:canary@h/1", "cannot read ***@h/1"),
            ("`test://?fps=0` and v4l2:///dev/video0?fps=0, a@b.mp4", "`test://?fps=0` and v4l2:///dev/video0?fps=0, a@b.mp4"),
            ("file://me:canary@h/a, profile://me:canary@h", "file://***@h/a, profile://***@h"),
            ("rtsp://a:canary@h/1?channel=1: no route; /rec/10:00/a@b.mp4", "rtsp://***@h/1?***: no route; /rec/10:00/a@b.mp4"),
            ("cannot read /home/me/me:canary@h/1: gone", "cannot read ***@h/1: gone"),
            ("file:///a@b.mp4 'é' \u{1f600}", "file:///a@b.mp4 'é' \u{1f600}"),
        ] {
            assert_eq!(hide_credentials(text), hidden);
        }
        assert_eq!(hide_in_word("--source=rtsp://me:can 'ary@h/1"), "--source=rtsp://***@h/1");
        assert_eq!(hide_in_word("me:can \"ary@h/1"), "***@h/1");
    }

    #[test]
    fn parts_and_scrubbing() {
        let of_path = SecretUrl::new("rtsp://h/user=admin_password=canary_channel=1".into());
        assert_eq!(of_path.scrub("401 for admin, canary on channel 1"), "401 for ***, *** on channel 1");
        assert_eq!(SecretUrl::new("udp://@239.1.1.1:5000".into()).credentials(), None);
        let secret = SecretUrl::new("rtsp://admin:canary%2F7@10.0.0.2:554/ch1?key=tweety".into());
        assert_eq!(secret.credentials(), Some(("admin", "canary%2F7")));
        assert_eq!(secret.plain_credentials(), Some(("admin".into(), "canary/7".into())));
        assert_eq!(secret.without_credentials(), "rtsp://10.0.0.2:554/ch1?key=tweety");
        let text = format!("cannot open {}: 401 for admin with canary/7, key tweety", secret.expose());
        let scrubbed = secret.scrub(&text);
        assert_eq!(scrubbed, "cannot open rtsp://***@10.0.0.2:554/ch1?***: 401 for *** with ***, key ***");
    }
}
