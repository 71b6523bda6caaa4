//! Looks after connections from below, whoever holds them.

use std::fs;
use std::net::{Shutdown, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How long the other end of a connection may be silent, even about whether it is there.
const GONE: Duration = Duration::from_secs(30);

/// Has the kernel send what is written on every TCP connection of this process to that port at once, ask the other end whether it is there,
/// and end those of which nobody answers.
pub fn keep_alive(port: u16) {
    let asking = TcpKeepalive::new().with_time(GONE / 2).with_interval(GONE / 6).with_retries(3);
    for socket in sockets(port) {
        let socket = SockRef::from(&socket);
        // One that is just closed is nobody's any more.
        socket.set_tcp_keepalive(&asking).ok();
        // Of two messages in a row the second would wait for the first one's acknowledgement, 40 ms.
        socket.set_tcp_nodelay(true).ok();
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(GONE)).ok();
    }
}

/// Shuts every TCP connection of this process to that port: whoever waits for an answer on one hears at once that it is broken. Returns
/// how many.
pub fn cut(port: u16) -> usize {
    sockets(port).iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
}

/// Those of the same connections over which nothing was sent nor received for longer than that, by their own ports.
pub fn silent(port: u16, longest: Duration) -> Vec<u16> {
    let own = |socket: &TcpStream| Some(socket.local_addr().ok()?.port());
    silent_sockets(port, longest).iter().filter_map(own).collect()
}

/// Shuts those of the same connections over which nothing was sent nor received for longer than that. Returns how many.
pub fn cut_silent(port: u16, longest: Duration) -> usize {
    silent_sockets(port, longest).iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
}

#[cfg(target_os = "linux")]
fn silent_sockets(port: u16, longest: Duration) -> Vec<TcpStream> {
    let is_silent = |socket: &TcpStream| silent_for(socket).is_some_and(|silent| silent > longest);
    sockets(port).into_iter().filter(is_silent).collect()
}

/// Elsewhere the kernel is not asked.
#[cfg(not(target_os = "linux"))]
fn silent_sockets(_port: u16, _longest: Duration) -> Vec<TcpStream> {
    Vec::new()
}

/// How long ago data went over a connection, either way, by the kernel's account.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "socket2 does not ask for it")]
fn silent_for(socket: &TcpStream) -> Option<Duration> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the kernel writes no more than `length` bytes into `info`, of which every pattern is a value.
    let (asked, info) = unsafe {
        let into = info.as_mut_ptr().cast();
        let asked = libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut length);
        (asked, info.assume_init())
    };
    let latest = info.tcpi_last_data_sent.min(info.tcpi_last_data_recv);
    (asked == 0).then(|| Duration::from_millis(latest.into()))
}

/// By the port alone: that the name means another address by now is one of the ways in which old connections go dead.
fn sockets(port: u16) -> Vec<TcpStream> {
    let Ok(mut entries) = fs::read_dir("/dev/fd") else { return Vec::new() };
    // The folder's own number stays taken, or the first duplicate would have it and be found again.
    let numbers = entries.by_ref().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.collect();
    let is_to_port = |socket: SockRef<'_>| {
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        peer.is_some_and(|peer| peer.port() == port)
    };
    // Whatever else there is, is left alone: a second handle on a listener would keep its port when its owner has closed it.
    let looked_at = numbers.into_iter().filter(|number| is_to_port(SockRef::from(&borrowed(*number))));
    looked_at.filter_map(duplicate).filter(|socket| is_to_port(SockRef::from(socket))).collect()
}

/// Another handle on what a number means, so that it means the same between the look and the end. What is no socket has no peer.
fn duplicate(number: RawFd) -> Option<TcpStream> {
    borrowed(number).try_clone_to_owned().ok().map(TcpStream::from)
}

#[expect(unsafe_code, reason = "the driver keeps its sockets to itself")]
fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is only asked for its peer and duplicated; where its owner has closed it meanwhile, that fails, and what was opened in its
    // place is asked as well as it would have been.
    unsafe { BorrowedFd::borrow_raw(number) }
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
        assert_eq!([&one, &two, &beside].map(|socket| socket.nodelay().unwrap()), [true, true, false]);

        assert_eq!(cut(port), 2);
        // Nobody has closed the other ends.
        assert_eq!(one.read(&mut [0]).unwrap() + two.read(&mut [0]).unwrap(), 0);
        beside.set_nonblocking(true).unwrap();
        assert_eq!((&beside).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn connections_over_which_nothing_goes_are_ended_and_no_others() {
        use std::io::Write as _;

        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let [(mut silent, _there), (mut heard, mut speaker), (speaking, _reader)] =
            [(); 3].map(|()| (TcpStream::connect(("127.0.0.1", port)).unwrap(), server.accept().unwrap().0));
        assert_eq!(cut_silent(port, Duration::from_secs(1)), 0);

        while silent_for(&silent).unwrap() < Duration::from_millis(200) {
            speaker.write_all(b"!").unwrap();
            (&speaking).write_all(b"?").unwrap();
        }
        assert_eq!(super::silent(port, Duration::from_millis(100)), [silent.local_addr().unwrap().port()]);
        assert_eq!(cut_silent(port, Duration::from_millis(100)), 1);
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        assert_eq!(heard.read(&mut [0]).unwrap(), 1);
    }
}
