// SPDX-License-Identifier: Apache-2.0
//! The link layer's bytes: a flag that cannot occur in data cuts a pipe into connections.
//! Pure; see docs/agent-protocol.md. Data is escaped, an opening is not.

const FLAG: u8 = 0x7e;
const ESCAPE: u8 = 0x7d;
const MAGIC: &[u8; 6] = b"HYPER1";
const NONCE: usize = 32;
const OPENING: usize = MAGIC.len() + NONCE;

pub type Nonce = [u8; NONCE];

/// What a piece of input means, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A flag: what was before it is over.
    Cut,
    /// A whole opening: what was before it is over; answer it and begin anew.
    Opened(Nonce),
}

/// Unescapes a stream that arrives in any pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Before the first flag, or after a frame that was no opening: skip to the next flag.
    #[default]
    Skipping,
    /// After a flag: the bytes so far of what may be an opening.
    Opening(Vec<u8>),
    /// In a connection; true after an escape byte. `head` is how it began: an opening torn just before its closing flag
    /// is closed by the next opening's first flag, and then that opening's body looks like data.
    Data { escaped: bool, head: Vec<u8> },
}

impl Decoder {
    /// Decodes a prefix of `input`: appends data to `out` and stops behind the first event.
    /// Returns how many bytes were used, and the event that ended them.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Option<Event>) {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            match &mut self.state {
                State::Data { escaped: escaped @ false, head } => {
                    let run = find_special(rest);
                    let plain = &rest[..run];
                    head.extend_from_slice(&plain[..run.min(OPENING + 1 - head.len())]);
                    out.extend_from_slice(plain);
                    used += run;
                    match rest.get(run) {
                        None => {}
                        Some(&FLAG) => {
                            let event = match parse_opening(head) {
                                Some(nonce) => self.open(nonce),
                                None => self.cut(),
                            };
                            return (used + 1, Some(event));
                        }
                        Some(_) => {
                            used += 1;
                            *escaped = true;
                            // An opening holds no escape.
                            head.resize(OPENING + 1, 0);
                        }
                    }
                }
                State::Data { escaped, .. } => {
                    used += 1;
                    match rest[0] {
                        0x5e => out.push(FLAG),
                        0x5d => out.push(ESCAPE),
                        FLAG => return (used, Some(self.cut())),
                        // Not a byte of ours: the connection cannot be trusted any more.
                        _ => {
                            self.state = State::Skipping;
                            return (used, Some(Event::Cut));
                        }
                    }
                    *escaped = false;
                }
                State::Skipping => match rest.iter().position(|&b| b == FLAG) {
                    None => used = input.len(),
                    Some(at) => return (used + at + 1, Some(self.cut())),
                },
                State::Opening(frame) => {
                    used += 1;
                    if rest[0] != FLAG {
                        frame.push(rest[0]);
                        if frame.len() > OPENING {
                            self.state = State::Skipping;
                        }
                    } else if let Some(nonce) = parse_opening(frame) {
                        return (used, Some(self.open(nonce)));
                    } else {
                        // A short or foreign frame; its closing flag begins the next.
                        frame.clear();
                    }
                }
            }
        }
        (used, None)
    }

    fn open(&mut self, nonce: Nonce) -> Event {
        self.state = State::Data { escaped: false, head: Vec::with_capacity(OPENING + 1) };
        Event::Opened(nonce)
    }

    fn cut(&mut self) -> Event {
        self.state = State::Opening(Vec::with_capacity(OPENING));
        Event::Cut
    }
}

fn parse_opening(frame: &[u8]) -> Option<Nonce> {
    let nonce: Nonce = frame.strip_prefix(MAGIC)?.try_into().ok()?;
    nonce.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(nonce)
}

/// The answer to an opening, and, from the host, the opening itself.
pub fn opening(nonce: &Nonce) -> Vec<u8> {
    let mut frame = Vec::with_capacity(OPENING + 2);
    frame.push(FLAG);
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(nonce);
    frame.push(FLAG);
    frame
}

pub fn escape(mut data: &[u8], out: &mut Vec<u8>) {
    out.reserve(data.len());
    loop {
        let run = find_special(data);
        out.extend_from_slice(&data[..run]);
        let Some(&byte) = data.get(run) else { return };
        out.extend_from_slice(&[ESCAPE, byte ^ 0x20]);
        data = &data[run + 1..];
    }
}

/// Index of the first flag or escape byte, or the length. Eight bytes at a step: every byte of
/// every container's output passes here, often under emulation.
fn find_special(data: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let has_zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
    let mut at = 0;
    for chunk in data.chunks_exact(8) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        let found = has_zero(word ^ (ONES * 0x7e)) | has_zero(word ^ (ONES * 0x7d));
        if found != 0 {
            // The lowest mark is exact; only marks above a real one can be false.
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + data[at..].iter().position(|b| matches!(*b, FLAG | ESCAPE)).unwrap_or(data.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(input: &[u8], split: usize) -> (Vec<u8>, Vec<Event>) {
        let (mut decoder, mut data, mut events) = (Decoder::default(), Vec::new(), Vec::new());
        for part in [&input[..split], &input[split..]] {
            let mut part = part;
            while !part.is_empty() {
                let (used, event) = decoder.decode(part, &mut data);
                part = &part[used..];
                events.extend(event);
            }
        }
        (data, events)
    }

    fn all_bytes() -> Vec<u8> {
        (0..1024_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .chain(0..=255)
            .chain([FLAG, ESCAPE, FLAG])
            .collect()
    }

    #[test]
    fn every_split_of_a_connection_gives_the_same_bytes() {
        let nonce = *b"0123456789abcdef0123456789abcdef";
        let mut wire = opening(&nonce);
        escape(&all_bytes(), &mut wire);
        for split in 0..=wire.len() {
            let (data, events) = drive(&wire, split);
            assert_eq!(data, all_bytes(), "split at {split}");
            assert_eq!(events, [Event::Cut, Event::Opened(nonce)]);
        }
    }

    #[test]
    fn escaped_data_holds_no_flag() {
        let mut wire = Vec::new();
        escape(&all_bytes(), &mut wire);
        assert!(!wire.contains(&FLAG));
    }

    #[test]
    fn an_opening_cut_anywhere_is_closed_by_the_next_ones_first_flag() {
        let (first, second) = (opening(&[b'a'; 32]), opening(&[b'b'; 32]));
        for kept in 0..first.len() {
            let wire = [&first[..kept], &second[..]].concat();
            for split in 0..=wire.len() {
                let (data, events) = drive(&wire, split);
                assert_eq!(events.last(), Some(&Event::Opened([b'b'; 32])), "kept {kept}");
                // Whole but for its closing flag, it is answered, to nobody.
                assert_eq!(events.contains(&Event::Opened([b'a'; 32])), kept == first.len() - 1);
                assert!(data.is_empty() || kept == first.len() - 1);
            }
        }
    }

    #[test]
    fn what_is_no_opening_is_skipped() {
        for noise in [
            &b"garbage"[..],
            b"~~~~",
            b"~HYPER1short~",
            b"~HYPER1XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX~",
            b"~HYPER2aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa~",
            &[b'~'; 3],
            &[0x7d, 0x7d],
        ] {
            let (data, events) = drive(&[noise, &opening(&[b'c'; 32])].concat(), 0);
            assert!(data.is_empty(), "{noise:?}");
            assert_eq!(events.last(), Some(&Event::Opened([b'c'; 32])), "{noise:?}");
        }
    }

    #[test]
    fn a_bad_escape_ends_the_connection() {
        let wire = [&opening(&[b'd'; 32])[..], b"ok", &[ESCAPE, b'x'], b"lost"].concat();
        let (data, events) = drive(&wire, 3);
        assert_eq!(data, b"ok");
        assert_eq!(events.last(), Some(&Event::Cut));
    }

    #[test]
    fn the_word_search_agrees_with_the_plain_one() {
        for length in 0..40 {
            for at in 0..length {
                for (byte, filler) in [(FLAG, 0x7f), (ESCAPE, 0x7c), (FLAG, 0xfe), (ESCAPE, 0x80), (FLAG, 0)] {
                    let mut data = vec![filler; length];
                    data[at] = byte;
                    assert_eq!(find_special(&data), at);
                }
            }
            assert_eq!(find_special(&vec![0x7c; length]), length);
        }
    }
}
