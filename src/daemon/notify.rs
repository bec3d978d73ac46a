//! What the service manager is told: the notification protocol of systemd, one datagram a message.
//!
//! The watchdog is fed by the supervisor's own loop and by nothing else: it proves that the loop turns.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Tells a service manager, or nobody (the default).
#[derive(Clone, Default)]
pub struct Notifier(Option<Arc<Channel>>);

struct Channel {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// The manager ends us when it hears nothing for so long.
    watchdog: Option<Duration>,
    status: Mutex<String>,
}

impl Notifier {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say; silent where they say nothing or cannot be used.
    pub fn from_env() -> Notifier {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Notifier::default() };
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&n| is_ours && n > 0).map(Duration::from_micros);
        Notifier::to(&address, watchdog).unwrap_or_default()
    }

    /// Speaks to a socket: a path, or `@name` for an abstract one.
    pub fn to(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not stop the line.
        socket.set_nonblocking(true)?;
        Ok(Notifier(Some(Arc::new(Channel { socket, manager, watchdog, status: Mutex::default() }))))
    }

    /// The line is open.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The line closes.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// The loop has turned, and this is what it does. The words are sent when they change.
    pub fn turned(&self, status: &str) {
        let Some(channel) = &self.0 else { return };
        if channel.watchdog.is_some() {
            self.say("WATCHDOG=1");
        }
        let mut told = channel.status.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *told != status {
            *told = status.to_owned();
            self.say(&format!("STATUS={}", status.replace('\n', " ")));
        }
    }

    /// The loop must turn at least this often.
    pub fn patience(&self) -> Option<Duration> {
        self.0.as_ref().and_then(|channel| channel.watchdog).map(|watchdog| watchdog / 2)
    }

    fn say(&self, message: &str) {
        if let Some(channel) = &self.0 {
            let _ = channel.socket.send_to_addr(message.as_bytes(), &channel.manager);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        manager.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        let hear = || {
            let n = manager.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
        };
        std::iter::from_fn(hear).collect()
    }

    #[test]
    fn a_socket_with_a_path_hears_everything_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str(), Some(Duration::from_secs(8))).unwrap();
        notifier.ready();
        notifier.turned("idle");
        notifier.turned("idle");
        notifier.turned("1 part\nbeing built");
        notifier.stopping();
        let expected = [
            "READY=1",
            "WATCHDOG=1",
            "STATUS=idle",
            "WATCHDOG=1",
            "WATCHDOG=1",
            "STATUS=1 part being built",
            "STOPPING=1",
        ];
        assert_eq!(heard(&manager), expected);
        assert_eq!(notifier.patience(), Some(Duration::from_secs(4)));
    }

    #[test]
    fn an_abstract_socket_hears_too_and_nobody_is_no_trouble() {
        let name = format!("factoryline-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::to(OsStr::new(&format!("@{name}")), None).unwrap();
        notifier.turned("idle");
        assert_eq!((heard(&manager), notifier.patience()), (vec!["STATUS=idle".to_owned()], None));
        drop(manager);
        notifier.stopping();
        Notifier::default().turned("idle");
        assert!(Notifier::to(OsStr::new(&"x".repeat(300)), None).is_err());
    }
}
