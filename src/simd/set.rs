//! Sets of instructions: which ones the processor has, and sixteen values in their registers.

/// Declares a function whose body is compiled for AVX-512, for AVX2 with FMA, and for the target's own instructions.
/// A first argument `simd: _` is filled in: in the body it is the [`Set`] that this is compiled for.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($simd:ident: _, $($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<S: $crate::simd::Set>($simd: S, $($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn widest(simd: $crate::simd::Avx512, $($arg: $ty),*) {
                    body(simd, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn wide(simd: $crate::simd::Avx2, $($arg: $ty),*) {
                    body(simd, $($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: there is a token of these instructions, so that the processor has them.
                    $crate::simd::Level::Avx512(simd) => return unsafe { widest(simd, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2(simd) => return unsafe { wide(simd, $($arg),*) },
                    $crate::simd::Level::Target => {}
                }
            }
            body($crate::simd::Target, $($arg),*)
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $crate::simd::vectorised! { $(#[$meta])* $vis fn $name(_simd: _, $($arg: $ty),*) $body }
    };
}
pub(crate) use vectorised;

/// The widest set of instructions of this processor, from the narrowest, with the proof that it has them.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Target,
    Avx2(x86::Avx2),
    Avx512(x86::Avx512),
}

/// What this processor has.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn level() -> Level {
    let Some(avx2) = x86::Avx2::detect() else { return Level::Target };
    x86::Avx512::detect().map_or(Level::Avx2(avx2), Level::Avx512)
}

/// Values of a [`Set::Lanes`]: the running sums of a reduction.
pub(crate) const LANES: usize = 16;

/// A set of instructions as a token: whoever has one runs on a processor that has the instructions, because only
/// detection makes one. The methods are fast in functions that are compiled for the set, as by [`vectorised!`], and
/// right everywhere. Loops over arrays would do, but the compiler does not always see vectors in them.
pub(crate) trait Set: Copy {
    /// Fused multiply-adds are instructions.
    const FMA: bool;
    /// There are registers for eight [`Lanes`](Set::Lanes) and what is added to them.
    const MANY: bool;
    type Lanes: Copy;
    fn load(self, values: &[f32; LANES]) -> Self::Lanes;
    fn store(self, lanes: Self::Lanes, values: &mut [f32; LANES]);
    /// The same value in all lanes.
    fn all(self, value: f32) -> Self::Lanes;
    /// `a b + c`, in one rounding where that is an instruction.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The larger of each, and `b` where `a` is a NaN.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The sum of the lanes: halves upon halves.
    fn sum(self, lanes: Self::Lanes) -> f32;
    /// The largest of the lanes, of which none is a NaN.
    fn largest(self, lanes: Self::Lanes) -> f32;
    #[inline(always)]
    fn zeros(self) -> Self::Lanes {
        self.all(0.0)
    }
}

/// The instructions that every processor of the target has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target;

impl Set for Target {
    const FMA: bool = cfg!(target_arch = "aarch64");
    const MANY: bool = false;
    type Lanes = [f32; LANES];
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Lanes {
        *values
    }
    #[inline(always)]
    fn store(self, lanes: Self::Lanes, values: &mut [f32; LANES]) {
        *values = lanes;
    }
    #[inline(always)]
    fn all(self, value: f32) -> Self::Lanes {
        [value; LANES]
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, mut c: Self::Lanes) -> Self::Lanes {
        for l in 0..LANES {
            c[l] = if Self::FMA { a[l].mul_add(b[l], c[l]) } else { a[l] * b[l] + c[l] };
        }
        c
    }
    #[inline(always)]
    fn add(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for l in 0..LANES {
            a[l] += b[l];
        }
        a
    }
    #[inline(always)]
    fn max(self, a: Self::Lanes, mut b: Self::Lanes) -> Self::Lanes {
        for l in 0..LANES {
            b[l] = if a[l] > b[l] { a[l] } else { b[l] };
        }
        b
    }
    #[inline(always)]
    fn sum(self, lanes: Self::Lanes) -> f32 {
        halves(lanes, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, lanes: Self::Lanes) -> f32 {
        halves(lanes, f32::max)
    }
}

/// One value of all: halves upon halves.
#[inline(always)]
fn halves(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = f(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Those of newer processors.
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{LANES, Set};
    use std::arch::x86_64::*;

    /// The proof that the processor has AVX2, FMA and F16C.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// The token, on a processor that has the instructions.
        #[inline]
        pub(crate) fn detect() -> Option<Self> {
            use std::arch::is_x86_feature_detected as has;
            (has!("avx2") && has!("fma") && has!("f16c")).then_some(Avx2(()))
        }
    }

    impl Set for Avx2 {
        const FMA: bool = true;
        const MANY: bool = false;
        type Lanes = [__m256; 2];
        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> Self::Lanes {
            let at = values.as_ptr();
            // SAFETY: the token proves the instructions, and the array is as long as what is moved.
            unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
        }
        #[inline(always)]
        fn store(self, [low, high]: Self::Lanes, values: &mut [f32; LANES]) {
            let at = values.as_mut_ptr();
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe {
                _mm256_storeu_ps(at, low);
                _mm256_storeu_ps(at.add(8), high);
            }
        }
        #[inline(always)]
        fn all(self, value: f32) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn sum(self, [low, high]: Self::Lanes) -> f32 {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { sum_of_eight(_mm256_add_ps(low, high)) }
        }
        #[inline(always)]
        fn largest(self, [low, high]: Self::Lanes) -> f32 {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { largest_of_eight(_mm256_max_ps(low, high)) }
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn sum_of_eight(v: __m256) -> f32 {
        // SAFETY: the token, or the caller, proves the instructions.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn largest_of_eight(v: __m256) -> f32 {
        // SAFETY: the token, or the caller, proves the instructions.
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    /// The proof that the processor has the parts of AVX-512 that are used here, and AVX2.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        /// The token, on a processor that has the instructions.
        #[inline]
        pub(crate) fn detect() -> Option<Self> {
            use std::arch::is_x86_feature_detected as has;
            let all = has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq");
            Avx2::detect().filter(|_| all).map(|_| Avx512(()))
        }
    }

    impl Set for Avx512 {
        const FMA: bool = true;
        const MANY: bool = true;
        type Lanes = __m512;
        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> Self::Lanes {
            // SAFETY: the token proves the instructions, and the array is as long as what is moved.
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, lanes: Self::Lanes, values: &mut [f32; LANES]) {
            // SAFETY: the token proves the instructions, and the array is as long as what is moved.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), lanes) }
        }
        #[inline(always)]
        fn all(self, value: f32) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn sum(self, lanes: Self::Lanes) -> f32 {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe {
                let low = _mm512_castps512_ps256(lanes);
                let high = _mm512_extractf32x8_ps::<1>(lanes);
                sum_of_eight(_mm256_add_ps(low, high))
            }
        }
        #[inline(always)]
        fn largest(self, lanes: Self::Lanes) -> f32 {
            // SAFETY: the token, or the caller, proves the instructions.
            unsafe {
                let low = _mm512_castps512_ps256(lanes);
                let high = _mm512_extractf32x8_ps::<1>(lanes);
                largest_of_eight(_mm256_max_ps(low, high))
            }
        }
    }
}
