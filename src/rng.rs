//! Counter-based random numbers: a value depends on its key and index alone, never on the order of calls.
//!
//! Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
//! only adds, rotates and xors, so the WGSL twin in `shaders/common/random.wgsl` gives the same bits.

/// One stream of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

/// Blocks of bits that are made at once.
const BLOCKS: usize = 64;

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// Threefry-2x32-20 block function.
#[inline(always)]
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let ks = [key[0], key[1], 0x1BD1_1BDA ^ key[0] ^ key[1]];
    let mut x0 = counter[0].wrapping_add(ks[0]);
    let mut x1 = counter[1].wrapping_add(ks[1]);
    for i in 0..5u32 {
        for r in ROTATIONS[i as usize % 2] {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(r) ^ x0;
        }
        x0 = x0.wrapping_add(ks[(i as usize + 1) % 3]);
        x1 = x1.wrapping_add(ks[(i as usize + 2) % 3]).wrapping_add(i + 1);
    }
    [x0, x1]
}

/// The upper 24 bits as a number in [0, 1).
#[inline(always)]
fn fraction(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Stream { key: [seed as u32, (seed >> 32) as u32] }
    }
    /// A sub-stream: independent of every other number and of the parent's own values.
    pub fn fork(self, n: u64) -> Self {
        let [a, b] = threefry2x32(self.key, [n as u32, (n >> 32) as u32 ^ 0x8000_0000]);
        Stream { key: [a, b] }
    }
    /// A sub-stream named by text, for example a parameter's path.
    pub fn named(self, name: &str) -> Self {
        // FNV-1a, 64 bits.
        let h =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
        self.fork(h & 0x7fff_ffff_ffff_ffff)
    }
    /// The two key words, as kernels take them.
    pub fn words(self) -> [u32; 2] {
        self.key
    }
    /// 32 random bits at `index`: word `index % 2` of block `index / 2`.
    pub fn bits(self, index: u32) -> u32 {
        threefry2x32(self.key, [index / 2, 0])[(index % 2) as usize]
    }
    /// Uniform in [0, 1) with 24 bits.
    pub fn uniform(self, index: u32) -> f32 {
        fraction(self.bits(index))
    }
    /// [`uniform`](Stream::uniform) at `first` and behind it. A block of bits serves two values, and in functions that are
    /// compiled for vectors many blocks are made at once.
    #[inline(always)]
    pub(crate) fn uniforms(self, first: u32, out: &mut [f32]) {
        let (head, rest) = out.split_at_mut(out.len().min(first as usize % 2));
        head.iter_mut().for_each(|out| *out = self.uniform(first));
        let (groups, rest) = rest.as_chunks_mut::<{ 2 * BLOCKS }>();
        let (pairs, tail) = rest.as_chunks_mut::<2>();
        let mut block = first.div_ceil(2);
        for group in groups {
            // Words in arrays of their own: in pairs the compiler would take half of the widest registers.
            let mut first = [0u32; BLOCKS];
            let mut second = [0u32; BLOCKS];
            for (i, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
                [*first, *second] = threefry2x32(self.key, [block.wrapping_add(i as u32), 0]);
            }
            let words = first.into_iter().zip(second);
            for (pair, (first, second)) in group.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *pair = [first, second].map(fraction);
            }
            block = block.wrapping_add(BLOCKS as u32);
        }
        for pair in pairs {
            *pair = threefry2x32(self.key, [block, 0]).map(fraction);
            block = block.wrapping_add(1);
        }
        tail.iter_mut().for_each(|out| *out = self.uniform(block.wrapping_mul(2)));
    }
    /// `n` values, uniform in [-bound, bound).
    pub fn uniform_vec(self, n: usize, bound: f32) -> Vec<f32> {
        (0..n as u32).map(|i| (self.uniform(i) * 2.0 - 1.0) * bound).collect()
    }
    /// `n` values, normal with mean 0 and standard deviation `std` (Box-Muller).
    pub fn normal_vec(self, n: usize, std: f32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| {
                let [a, b] = threefry2x32(self.key, [i, 1]);
                let u = ((a >> 8) as f64 + 0.5) / 16_777_216.0;
                let v = (b >> 8) as f64 / 16_777_216.0;
                ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32 * std
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // Test vectors of the Random123 distribution.
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn many_at_once_are_the_same_numbers() {
        let stream = Stream::new(3).named("many");
        for (first, n) in [(0, 0), (1, 0), (0, 1), (1, 1), (5, 2), (4, 3), (7, 100), (8, 1001)] {
            let mut got = vec![f32::NAN; n];
            stream.uniforms(first, &mut got);
            let want: Vec<f32> = (first..).take(n).map(|i| stream.uniform(i)).collect();
            assert_eq!(got, want, "{n} from {first} on");
        }
    }

    #[test]
    fn moments() {
        let n = Stream::new(7).named("x").normal_vec(20_000, 2.0);
        let mean = n.iter().sum::<f32>() / n.len() as f32;
        let var = n.iter().map(|v| v * v).sum::<f32>() / n.len() as f32;
        assert!(mean.abs() < 0.05 && (var - 4.0).abs() < 0.15, "{mean} {var}");
        assert_ne!(Stream::new(7).named("a"), Stream::new(7).named("b"));
    }
}
