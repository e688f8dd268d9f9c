//! The host's half of kernels/common/divide.cuh.

use bytemuck::{Pod, Zeroable};

/// Division by `divisor` of dividends below 2^31: a product and a shift.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Divider {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

const _: () = assert!(size_of::<Divider>() == 12);

impl Divider {
    /// `divisor` from 1 to 2^31 - 1.
    pub(crate) fn new(divisor: usize) -> Divider {
        let divisor = divisor as u64;
        let shift = divisor.next_power_of_two().trailing_zeros();
        let excess = (1u64 << shift) - divisor;
        let multiplier = (excess << 32) / divisor + 1;
        Divider { divisor: divisor as u32, multiplier: multiplier as u32, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Divider {
        /// What the kernels compute.
        fn quotient(&self, n: u32) -> u32 {
            let product = (u64::from(n) * u64::from(self.multiplier)) >> 32;
            (product as u32).wrapping_add(n) >> self.shift
        }
    }

    #[test]
    fn quotients() {
        let divisors =
            (1..300).chain([511, 512, 1000, 65_535, 65_536, 1 << 20, (1 << 30) - 1, 1 << 30, i32::MAX as usize]);
        for divisor in divisors {
            let (by, d) = (Divider::new(divisor), divisor as u64);
            let near = (0..40u64).flat_map(|k| [k, (k * d).saturating_sub(1), k * d, i32::MAX as u64 - k]);
            let spread = (0..200u64).map(|k| k * 10_737_417);
            for n in near.chain(spread).filter(|n| *n <= i32::MAX as u64) {
                assert_eq!(u64::from(by.quotient(n as u32)), n / d, "{n} / {d}");
            }
        }
    }
}
