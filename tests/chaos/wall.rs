//! An address that takes no connection until it is opened, and then leads on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub struct Wall {
    listener: TcpListener,
    pub address: SocketAddr,
    /// They fill the queue of connections that wait to be taken: the system answers no others.
    waiting: Vec<TcpStream>,
}

impl Wall {
    pub async fn build() -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse().unwrap())?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(stream?);
        }
        Ok(Self { listener, address, waiting })
    }

    /// From now on whoever comes is led to `target`.
    pub fn open(self, target: SocketAddr) {
        let Self { listener, waiting, .. } = self;
        drop(waiting);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
    }
}
