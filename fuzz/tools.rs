//! What the targets share.

/// Takes numbers off the front of the input: how to cut the rest, which variant to try.
#[derive(Debug)]
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    /// The first `count` bytes are numbers, the others are returned.
    pub fn new(input: &'a [u8], count: usize) -> (Dice<'a>, &'a [u8]) {
        let (numbers, rest) = input.split_at(count.min(input.len()));
        (Dice(numbers), rest)
    }

    /// The next number; 0 once there is none.
    pub fn next(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first)
    }

    /// Cuts `bytes` into pieces whose lengths are the numbers; they begin anew where they end. All zero: one piece.
    pub fn cut<'b>(&self, mut bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut pieces = Vec::new();
        let mut lengths = self.0.iter().filter(|length| **length > 0).cycle();
        while !bytes.is_empty() {
            let length = lengths
                .next()
                .map_or(bytes.len(), |length| usize::from(*length));
            let (piece, rest) = bytes.split_at(length.min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
