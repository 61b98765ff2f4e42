// SPDX-License-Identifier: Apache-2.0
use std::io::Write;

use super::*;

fn fill(ring: &mut Ring, stream: Stream, data: &[u8]) -> usize {
    let copied = ring.fill(stream, |free| {
        let n = free.len().min(data.len());
        free[..n].copy_from_slice(&data[..n]);
        Ok::<_, ()>(n)
    });
    copied.unwrap()
}

fn text(ring: &Ring, offset: u64) -> (u64, Stream, Vec<u8>) {
    let chunk = ring.chunk_at(offset).unwrap();
    (chunk.offset, chunk.stream, chunk.data.to_vec())
}

#[test]
fn streams_keep_their_order_and_their_names() {
    let mut ring = Ring { writers: 1, ..Ring::default() };
    for (stream, data) in
        [(Stream::Stdout, &b"one"[..]), (Stream::Stdout, b"two"), (Stream::Stderr, b"err"), (Stream::Stdout, b"three")]
    {
        fill(&mut ring, stream, data);
    }
    assert_eq!(text(&ring, 0), (0, Stream::Stdout, b"onetwo".to_vec()));
    assert_eq!(text(&ring, 4), (4, Stream::Stdout, b"wo".to_vec()));
    assert_eq!(text(&ring, 6), (6, Stream::Stderr, b"err".to_vec()));
    assert_eq!(text(&ring, 9), (9, Stream::Stdout, b"three".to_vec()));
    assert!(ring.chunk_at(14).is_none());
    ring.writers = 0;
    assert!(ring.chunk_at(14).unwrap().eof);
}

#[test]
fn a_full_ring_takes_nothing_until_it_is_acknowledged() {
    let mut ring = Ring { writers: 1, ..Ring::default() };
    let block: Vec<u8> = (0..CHUNK).map(|i| (i % 251) as u8).collect();
    while !ring.is_full() {
        assert!(fill(&mut ring, Stream::Stdout, &block) > 0);
    }
    assert_eq!(ring.end, RING as u64);
    assert!(ring.acknowledge(100));
    assert!(!ring.is_full());
    assert_eq!(fill(&mut ring, Stream::Stdout, &block), 100);
    assert_eq!(text(&ring, RING as u64).2, block[..100]);
    assert!(!ring.acknowledge(99), "backwards");
    assert!(!ring.acknowledge(RING as u64 + 101), "beyond the end");
}

#[test]
fn alternating_single_bytes_cannot_make_the_ring_grow() {
    let mut ring = Ring { writers: 2, ..Ring::default() };
    let mut n = 0_u64;
    while !ring.is_full() {
        fill(&mut ring, if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr }, b"x");
        n += 1;
    }
    assert_eq!(ring.segments.len(), SEGMENTS);
    ring.acknowledge(n - 1);
    assert_eq!(ring.segments.len(), 1);
}

#[test]
fn a_wrapped_ring_reads_back_what_went_in() {
    let mut ring = Ring { writers: 1, ..Ring::default() };
    let (mut written, mut read) = (0_u64, 0_u64);
    let mut step = 1;
    while read < 4 * RING as u64 {
        step = step * 7 % 65_521 + 1;
        let data: Vec<u8> = (0..step).map(|i| ((written + i) % 253) as u8).collect();
        if !ring.is_full() {
            written += fill(&mut ring, Stream::Stdout, &data) as u64;
        }
        let (offset, _, data) = text(&ring, read);
        assert!(data.iter().enumerate().all(|(i, &b)| b == ((offset + i as u64) % 253) as u8));
        read += data.len() as u64;
        ring.acknowledge(read);
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn the_end_comes_when_the_last_writer_has_gone() {
    in_runtime(async {
        let (source, mut sink) = std::io::pipe().unwrap();
        let background = sink.try_clone().unwrap();
        let output = Output::new(1);
        tokio::spawn(output.clone().pump(Stream::Stdout, watched(source.into(), Interest::READABLE).unwrap()));
        let mut reader = output.attach(0).unwrap();
        sink.write_all(b"hello").unwrap();
        drop(sink);
        let chunk = reader.next().await.unwrap();
        assert_eq!((&chunk.data[..], chunk.eof), (&b"hello"[..], false));
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), reader.next()).await;
        assert!(early.is_err(), "a background child still holds the pipe");
        drop(background);
        let last = reader.next().await.unwrap();
        assert!(last.eof && last.offset == 5);
    });
}

#[test]
fn a_second_reader_ends_the_first_and_starts_where_it_says() {
    in_runtime(async {
        let output = Output::new(1);
        fill(&mut output.lock(), Stream::Stdout, b"0123456789");
        let mut first = output.attach(0).unwrap();
        assert_eq!(first.next().await.unwrap().data, "0123456789");
        let mut second = output.attach(4).unwrap();
        assert!(first.next().await.is_none());
        assert_eq!(second.next().await.unwrap().data, "456789");
        assert!(output.attach(3).is_err(), "stored by the host, gone here");
        assert!(output.attach(11).is_err(), "not written yet");
    });
}

#[test]
fn acknowledging_the_future_is_refused() {
    in_runtime(async {
        let output = Output::new(1);
        fill(&mut output.lock(), Stream::Stdout, b"0123456789");
        let mut reader = output.attach(0).unwrap();
        assert!(reader.acknowledge(1).is_err());
        reader.next().await.unwrap();
        reader.acknowledge(10).unwrap();
        assert_eq!(output.lock().start, 10);
    });
}

#[test]
fn input_stops_where_the_process_stops_reading() {
    in_runtime(async {
        let (source, sink) = std::io::pipe().unwrap();
        let input = Input::new(Some(watched(sink.into(), Interest::WRITABLE).unwrap()), false);
        assert_eq!(input.write(b"abc").await, 3);
        drop(source);
        assert_eq!(input.write(b"def").await, 0);
        input.close().await;
        assert_eq!(input.write(b"ghi").await, 0);
    });
}

#[test]
fn what_is_forgotten_is_read_on_and_thrown_away() {
    in_runtime(async {
        let (source, mut sink) = std::io::pipe().unwrap();
        let output = Output::new(1);
        let mut reader = output.attach(0).unwrap();
        let pump =
            tokio::spawn(output.clone().pump(Stream::Stdout, watched(source.into(), Interest::READABLE).unwrap()));
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            sink.write_all(&vec![b'x'; 4 * RING]).unwrap();
        });
        while output.end_offset() < RING as u64 {
            tokio::task::yield_now().await;
        }
        output.forget();
        pump.await.unwrap();
        writer.join().unwrap();
        assert!(reader.next().await.is_none());
        assert!(output.lock().bytes.is_empty());
    });
}
