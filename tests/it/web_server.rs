//! A small server of HTTP/1.1 for tests of what is fetched. It listens on this machine only and ends when it is dropped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request: its path with the query, and the byte its range begins at.
pub struct Request {
    pub path: String,
    pub from: u64,
}

/// Speaks as much HTTP/1.1 as is needed, one connection after the other, until it is dropped.
pub struct Server {
    pub at: SocketAddr,
    /// `path` or `path from N` of every request.
    log: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let (log, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (heard, over) = (Arc::clone(&log), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Some((mut stream, request)) = stream.ok().and_then(read_request) else { continue };
                let from = if request.from > 0 { format!(" from {}", request.from) } else { String::new() };
                heard.lock().unwrap().push(format!("{}{from}", request.path));
                // Whoever had enough hangs up.
                let _ = stream.write_all(&answer(&request));
            }
        });
        Server { at, log, ended, thread: Some(thread) }
    }

    /// What was asked since the last look.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.at);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn read_request(mut stream: TcpStream) -> Option<(TcpStream, Request)> {
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(Duration::from_secs(20))).ok()?;
    }
    let (mut text, mut byte) = (Vec::new(), [0u8]);
    while !text.ends_with(b"\r\n\r\n") {
        if text.len() > 1 << 14 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).ok()?;
    let path = text.split(' ').nth(1)?.to_owned();
    let range =
        text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from = range.map_or(Some(0), |range| range.trim_end_matches('-').parse().ok())?;
    Some((stream, Request { path, from }))
}

/// A whole answer; `more` are further header lines.
pub fn answer(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub fn no(status: &str) -> Vec<u8> {
    answer(status, "", b"no")
}

/// A file, from where it is wanted.
pub fn part_of(body: &[u8], from: u64) -> Vec<u8> {
    match from {
        0 => answer("200 OK", "", body),
        _ => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
            answer("206 Partial Content", &range, &body[from as usize..])
        }
    }
}

/// An answer without its last bytes: the connection breaks before them.
pub fn broken(mut answer: Vec<u8>, lacking: usize) -> Vec<u8> {
    answer.truncate(answer.len() - lacking);
    answer
}

/// Answers one connection with what is no TLS, and tells the first byte that was sent.
pub fn first_byte_sent_to(listener: TcpListener) -> JoinHandle<u8> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut hello = [0u8; 1 << 12];
        assert!(stream.read(&mut hello).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        hello[0]
    })
}
