//! Looks after connections from below, whoever holds them.

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How long the other end of a connection may be silent, even about whether it is there.
const GONE: Duration = Duration::from_secs(30);

/// Lets the kernel ask the other end of every TCP connection of this process to that port whether it is there, and end those of which
/// nobody answers.
pub fn keep_alive(port: u16) {
    let asking = TcpKeepalive::new().with_time(GONE / 2).with_interval(GONE / 6).with_retries(3);
    for socket in sockets(port) {
        let socket = SockRef::from(&socket);
        // One that is just closed is nobody's any more.
        socket.set_tcp_keepalive(&asking).ok();
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(GONE)).ok();
    }
}

/// Shuts every TCP connection of this process to that port: whoever waits for an answer on one hears at once that it is broken. Returns
/// how many.
pub fn cut(port: u16) -> usize {
    sockets(port).iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
}

/// By the port alone: that the name means another address by now is one of the ways in which old connections go dead.
fn sockets(port: u16) -> Vec<TcpStream> {
    let Ok(mut entries) = fs::read_dir("/dev/fd") else { return Vec::new() };
    // The folder's own number stays taken, or the first duplicate would have it and be found again.
    let numbers = entries.by_ref().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.collect();
    let is_to_port = |socket: &TcpStream| socket.peer_addr().is_ok_and(|peer| peer.port() == port);
    numbers.into_iter().filter_map(duplicate).filter(is_to_port).collect()
}

/// Another handle on what a number means, so that it means the same between the look and the end. What is no socket has no peer.
#[expect(unsafe_code, reason = "the driver keeps its sockets to itself")]
fn duplicate(number: RawFd) -> Option<TcpStream> {
    // SAFETY: the number is only duplicated; where its owner has closed it meanwhile, that fails, and what was opened in its place is
    // duplicated as well as it would have been.
    let found = unsafe { BorrowedFd::borrow_raw(number) };
    found.try_clone_to_owned().ok().map(TcpStream::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn connections_to_a_port_are_asked_for_and_ended_and_no_others() {
        let [dead, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let connect = |listener: &TcpListener| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut one, mut two, beside) = (connect(&dead), connect(&dead), connect(&other));
        let port = dead.local_addr().unwrap().port();

        keep_alive(port);
        let asked = [&one, &two, &beside].map(|socket| SockRef::from(socket).keepalive().unwrap());
        assert_eq!(asked, [true, true, false]);

        assert_eq!(cut(port), 2);
        // Nobody has closed the other ends.
        assert_eq!(one.read(&mut [0]).unwrap() + two.read(&mut [0]).unwrap(), 0);
        beside.set_nonblocking(true).unwrap();
        assert_eq!((&beside).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
