//! Where a key lies: a 32-bit hash that never changes, and ranges of it.
//!
//! The hash is FNV-1a (64 bits, Fowler, Noll and Vo) with the finalizer of MurmurHash3 (`fmix64`, Appleby),
//! of which the upper 32 bits are taken. FNV alone leaves short keys that differ in their last byte close
//! to each other; the finalizer spreads them over the whole range. Which shard holds a key depends on it, so
//! it is part of the format: golden values below.

use std::fmt;

rafted_value::messages! {
    /// Where a key lies in the space that shards divide.
    #[derive(Copy, Eq, PartialOrd, Ord, Hash)]
    pub struct KeyHash(pub u32);

    /// Hashes from `lower` to `upper`, both included: never empty.
    #[derive(Copy, Eq, PartialOrd, Ord, Hash)]
    pub struct HashRange {
        lower: KeyHash,
        upper: KeyHash,
    }
}

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &str) -> Self {
        // The upper half of 64 bits fits.
        Self((fingerprint(key.as_bytes()) >> 32) as u32)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl HashRange {
    /// Every key.
    pub const ALL: Self = Self { lower: KeyHash(0), upper: KeyHash(u32::MAX) };

    /// `None` when `lower` is above `upper`.
    pub fn new(lower: KeyHash, upper: KeyHash) -> Option<Self> {
        (lower <= upper).then_some(Self { lower, upper })
    }

    /// The first hash.
    pub fn lower(self) -> KeyHash {
        self.lower
    }

    /// The last hash.
    pub fn upper(self) -> KeyHash {
        self.upper
    }

    /// Whether the hash lies in it.
    pub fn contains(self, hash: KeyHash) -> bool {
        self.lower <= hash && hash <= self.upper
    }

    /// Both together, when one begins where the other ends.
    pub fn join(self, other: Self) -> Option<Self> {
        let (first, second) = if self.lower <= other.lower { (self, other) } else { (other, self) };
        (first.upper.0.checked_add(1) == Some(second.lower.0))
            .then_some(Self { lower: first.lower, upper: second.upper })
    }

    /// What is left when `part` goes.
    pub fn without(self, part: Self) -> Rest {
        let inside = self.lower <= part.lower && part.upper <= self.upper;
        match (inside, self.lower == part.lower, self.upper == part.upper) {
            (true, true, true) => Rest::Nothing,
            // `part` ends before `self` does, so that there is a next hash; below likewise.
            (true, true, false) => Rest::Range(Self { lower: KeyHash(part.upper.0 + 1), upper: self.upper }),
            (true, false, true) => Rest::Range(Self { lower: self.lower, upper: KeyHash(part.lower.0 - 1) }),
            _ => Rest::NoEdge,
        }
    }

    /// All hashes in `count` ranges of the same size, give or take one; zero counts as one.
    pub fn divide(count: u32) -> Vec<Self> {
        let count = u64::from(count.max(1));
        // The border before range `n`: at most 2^32, and below it for every lower end.
        let border = |n: u64| (n << 32) / count;
        let range = |n| Self { lower: KeyHash(border(n) as u32), upper: KeyHash((border(n + 1) - 1) as u32) };
        (0..count).map(range).collect()
    }
}

impl fmt::Display for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.lower, self.upper)
    }
}

/// What is left of a range without a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The part was all of it.
    Nothing,
    /// The part was one end.
    Range(HashRange),
    /// The part is not one end of the range.
    NoEdge,
}

/// The same hash with all its 64 bits: tells requests apart.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hash = FNV_OFFSET;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_never_change() {
        let golden = [
            ("", 0xEFD0_1F60_BA99_2926),
            ("a", 0x82A2_A958_A9BE_CE5B),
            ("k1", 0x4A2B_30EB_9896_2955),
            ("k2", 0x798D_032A_2B48_D2C8),
            ("alice", 0x3507_D047_A67C_08F4),
            ("ключ", 0x5905_20D7_1827_5ED5),
        ];
        for (key, expected) in golden {
            assert_eq!(fingerprint(key.as_bytes()), expected, "{key:?} {:016x}", fingerprint(key.as_bytes()));
            assert_eq!(u64::from(KeyHash::of(key).0), expected >> 32);
        }
    }

    #[test]
    fn keys_spread_evenly_over_shards() {
        for count in [2, 3, 8, 64] {
            let ranges = HashRange::divide(count);
            let mut keys = vec![0_u32; ranges.len()];
            let total = 64_000;
            for number in 0..total {
                let hash = KeyHash::of(&format!("k{number}"));
                keys[ranges.iter().position(|range| range.contains(hash)).unwrap()] += 1;
            }
            let expected = f64::from(total) / f64::from(count);
            // Six standard deviations of a fair throw.
            let tolerance = 6.0 * expected.sqrt();
            for (range, &found) in ranges.iter().zip(&keys) {
                assert!((f64::from(found) - expected).abs() < tolerance, "{count} shards: {found} in {range}");
            }
        }
    }

    #[test]
    fn the_divided_ranges_follow_each_other_without_a_gap() {
        for count in [0, 1, 2, 3, 5, 7, 8, 63, 64, 1_000, 4_096] {
            let ranges = HashRange::divide(count);
            assert_eq!(ranges.len(), count.max(1) as usize);
            let joined = ranges.iter().copied().reduce(|all, next| all.join(next).unwrap());
            assert_eq!(joined, Some(HashRange::ALL), "{count}");
        }
    }

    #[test]
    fn only_an_edge_is_taken_away_and_given_back() {
        let range = |lower, upper| HashRange::new(KeyHash(lower), KeyHash(upper)).unwrap();
        let whole = range(10, 20);
        assert_eq!(whole.without(whole), Rest::Nothing);
        assert_eq!(whole.without(range(10, 12)), Rest::Range(range(13, 20)));
        assert_eq!(whole.without(range(15, 20)), Rest::Range(range(10, 14)));
        for outside in [range(11, 19), range(9, 12), range(15, 21), range(0, 9), range(21, 30)] {
            assert_eq!(whole.without(outside), Rest::NoEdge, "{outside}");
        }
        assert_eq!(range(13, 20).join(range(10, 12)), Some(whole));
        assert_eq!(range(10, 12).join(range(14, 20)), None);
        assert_eq!(HashRange::ALL.join(range(0, 0)), None);
        assert_eq!(HashRange::new(KeyHash(2), KeyHash(1)), None);
    }
}
