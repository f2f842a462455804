//! Divides the input of a target into choices and data.

/// Numbers from the front of the input: which variant to try, and how to cut the rest.
#[derive(Debug)]
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    /// Uses the first `count` bytes as numbers and returns the others.
    pub fn new(input: &'a [u8], count: usize) -> (Dice<'a>, &'a [u8]) {
        let (numbers, rest) = input.split_at(count.min(input.len()));
        (Dice(numbers), rest)
    }

    /// The next number; 0 when there are no more.
    pub fn next(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first)
    }

    /// Cuts `bytes` into pieces whose lengths are the numbers, used in a cycle. If all are zero, there is one piece.
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
