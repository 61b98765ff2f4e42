// SPDX-License-Identifier: Apache-2.0
//! A socket pair stands for the serial port: it outlives every host, and keeps what the last one left in it.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hyper::rt::{Read as _, Write as _};

use super::*;
use crate::proto::Stream;
use crate::stdio::{Output, watched};

async fn read_some(connection: &mut Connection, buffer: &mut [u8]) -> usize {
    let mut buffer = hyper::rt::ReadBuf::new(buffer);
    poll_fn(|cx| Pin::new(&mut *connection).poll_read(cx, buffer.unfilled())).await.unwrap();
    buffer.filled().len()
}

async fn write_all(connection: &mut Connection, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let n = poll_fn(|cx| Pin::new(&mut *connection).poll_write(cx, data)).await?;
        data = &data[n..];
    }
    poll_fn(|cx| Pin::new(&mut *connection).poll_flush(cx)).await
}

/// A protocol as small as can be: the host sends an offset, the guest sends the output from there on.
struct Replay(Arc<Output>);

impl Serve for Replay {
    type Guard = ScopeGuard;
    fn serve(&self, mut connection: Connection) -> ScopeGuard {
        let (scope, guard) = Scope::new();
        let output = self.0.clone();
        hyper::rt::Executor::execute(&scope, async move {
            let mut asked = [0; 8];
            let mut have = 0;
            while have < 8 {
                match read_some(&mut connection, &mut asked[have..]).await {
                    0 => return,
                    n => have += n,
                }
            }
            let mut reader = output.attach(u64::from_le_bytes(asked)).unwrap();
            while let Some(chunk) = reader.next().await {
                if chunk.eof || write_all(&mut connection, &chunk.data).await.is_err() {
                    return;
                }
            }
        });
        guard
    }
}

fn pattern(offset: u64) -> u8 {
    // Every byte value, flags and escapes among them, and no short period.
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// What the host does: opens, throws away all before its own nonce, then reads plain bytes.
struct Host<'a> {
    wire: &'a UnixStream,
    decoder: Decoder,
    data: Vec<u8>,
}

impl<'a> Host<'a> {
    fn open(wire: &'a UnixStream, nonce: &link::Nonce, offset: u64) -> Self {
        let mut opening = link::opening(nonce);
        link::escape(&offset.to_le_bytes(), &mut opening);
        let mut writer = wire;
        writer.write_all(&opening).unwrap();
        let mut host = Self { wire, decoder: Decoder::default(), data: Vec::new() };
        host.read_until(|event, _| event == Some(&Event::Opened(*nonce)));
        host
    }

    fn read_until(&mut self, mut done: impl FnMut(Option<&Event>, usize) -> bool) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let n = self.wire.read(&mut buffer).unwrap();
            assert!(n > 0);
            let mut input = &buffer[..n];
            let mut finished = false;
            while !input.is_empty() {
                let (used, event) = self.decoder.decode(input, &mut self.data);
                input = &input[used..];
                if event.is_some() && !finished {
                    self.data.clear();
                }
                finished |= done(event.as_ref(), self.data.len());
            }
            if finished {
                return;
            }
        }
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

#[test]
fn a_thousand_reconnects_lose_and_repeat_nothing_of_100_mb() {
    const TOTAL: u64 = 100_000_000;
    const CONNECTIONS: u64 = 1000;
    let (guest, host) = UnixStream::pair().unwrap();
    let (source, mut sink) = std::io::pipe().unwrap();
    let producer = std::thread::spawn(move || {
        let mut block = vec![0; 64 * 1024];
        let mut at = 0;
        while at < TOTAL {
            let length = block.len().min((TOTAL - at) as usize);
            block[..length].iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(at + i as u64));
            sink.write_all(&block[..length]).unwrap();
            at += length as u64;
        }
    });
    let consumer = std::thread::spawn(move || {
        let mut offset = 0;
        for number in 0..CONNECTIONS {
            let nonce: link::Nonce = format!("{number:032x}").into_bytes().try_into().unwrap();
            if number % 3 == 0 {
                // A host that died in the middle of its opening.
                let torn = link::opening(&[b'e'; 32]);
                let mut writer = &host;
                writer.write_all(&torn[..(number as usize * 7) % torn.len()]).unwrap();
            }
            let mut connection = Host::open(&host, &nonce, offset);
            let wanted =
                if number + 1 == CONNECTIONS { TOTAL - offset } else { (TOTAL - offset).min(TOTAL / CONNECTIONS) };
            if (connection.data.len() as u64) < wanted {
                connection.read_until(|event, have| {
                    assert_eq!(event, None, "a flag in the middle of a connection");
                    have as u64 >= wanted
                });
            }
            // What was read beyond the wanted is lost with this host.
            for byte in &connection.data[..wanted as usize] {
                assert_eq!(*byte, pattern(offset));
                offset += 1;
            }
        }
        assert_eq!(offset, TOTAL);
    });
    in_runtime(async {
        let output = Output::new(1);
        let source = watched(source.into(), Interest::READABLE).unwrap();
        tokio::spawn(output.clone().pump(Stream::Stdout, source));
        // Each connection's share fits into the ring; the next one's offset acknowledges it.
        let replay = Replay(output);
        let served = serve_pipe(guest.into(), Hangup::Ends, &replay);
        tokio::time::timeout(Duration::from_secs(120), served).await.unwrap().unwrap();
    });
    consumer.join().unwrap();
    producer.join().unwrap();
}

#[test]
fn a_port_without_a_host_does_not_spin_and_wakes_for_the_next() {
    // A socket pair cannot read 0 and live; what can be shown is that silence costs no turns.
    let (guest, host) = UnixStream::pair().unwrap();
    in_runtime(async {
        let replay = Replay(Output::new(0));
        let turns = std::cell::Cell::new(0_u32);
        let served = serve_pipe(guest.into(), Hangup::Waits, &replay);
        tokio::pin!(served);
        let counted = poll_fn(|cx| {
            turns.set(turns.get() + 1);
            served.as_mut().poll(cx)
        });
        let _ = tokio::time::timeout(Duration::from_millis(50), counted).await;
        assert!(turns.get() < 5, "{} turns in silence", turns.get());
    });
    drop(host);
}

#[test]
fn a_new_opening_ends_the_connection_before_it() {
    let (guest, host) = UnixStream::pair().unwrap();
    let first_output = Output::new(1);
    let served = std::thread::spawn({
        let output = first_output.clone();
        move || in_runtime(async { serve_pipe(guest.into(), Hangup::Ends, &Replay(output)).await })
    });
    let nonces: Vec<link::Nonce> = (0..3).map(|n| format!("{n:032x}").into_bytes().try_into().unwrap()).collect();
    for nonce in &nonces {
        let connection = Host::open(&host, nonce, 0);
        assert!(connection.data.is_empty());
    }
    drop(host);
    served.join().unwrap().unwrap();
}

#[test]
fn the_outgoing_buffer_does_not_grow_while_something_is_always_left_in_it() {
    let mut outbound = Outbound::default();
    for _ in 0..20_000 {
        while outbound.waiting() < BUFFER {
            link::escape(&[0x7e; BUFFER], &mut outbound.bytes);
        }
        outbound.took(1024);
        assert!(outbound.bytes.len() <= 4 * BUFFER, "{} bytes are kept", outbound.bytes.len());
    }
    assert!(outbound.bytes.capacity() <= 8 * BUFFER);
}
