//! The AMX kernel (x86-64 Linux): tile products of bf16 pairs with f32 accumulators.
//!
//! Enters: panels in the layouts of [`super::tiles`]. Leaves: 32 × 32 blocks of f32 products.
//! Source of the instruction semantics and of the tile layouts: Intel 64 and IA-32 Architectures Software
//! Developer's Manual, volume 2 (LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED) and volume 1, chapter "Intel AMX".
//!
//! The intrinsics are not stable in Rust, so the instructions are written as `asm!`. One micro-kernel is one block:
//! no tile register lives across a line the compiler generates.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::tiles::{PANEL, TileRow};

/// Bytes from one row of a packed tile to the next.
const TILE_STRIDE: usize = size_of::<TileRow>();

/// Proof that this processor and this kernel let the process use AMX-BF16 (and AVX-512 with BF16, for packing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

impl Amx {
    /// Asks the processor and the operating system, once per process.
    pub fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| processor_has_it() && request_permission()).then_some(Self(()))
    }

    /// Sets this thread's tile shapes; they are released when the guard is dropped.
    pub fn configure(self) -> Configured {
        #[repr(C, align(64))]
        struct TileConfig {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_per_row: [u16; 16],
            rows: [u8; 16],
        }
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        config.bytes_per_row[..8].fill(TILE_STRIDE as u16);
        config.rows[..8].fill(16);
        // SAFETY: `self` proves that the instruction exists and the kernel saves the state; the operand is 64 bytes
        // in the documented layout (palette 1: eight tiles of at most 16 rows of 64 bytes).
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &config, options(nostack, readonly)) };
        Configured(PhantomData)
    }
}

fn processor_has_it() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let amx = __cpuid(0).eax >= 7 && {
        let edx = __cpuid_count(7, 0).edx;
        edx & AMX_BF16 != 0 && edx & AMX_TILE != 0
    };
    amx && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Linux gives tile state only to processes that ask for it (Documentation/arch/x86/xstate.rst). The permission
/// holds for every thread; refusal (old kernel, masked XCR0, a signal stack that is too small) means no AMX.
fn request_permission() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let status: isize;
    // SAFETY: a system call without pointers; the kernel clobbers only rcx, r11 and rax.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => status, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    status == 0
}

/// A thread whose tiles are configured. Not `Send`: the state belongs to the thread.
pub struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the guard exists only where AMX does. Idle tile state costs context switches and clock rate.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The instructions that open a micro-kernel: four zero accumulators.
macro_rules! zero {
    () => {
        "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3"
    };
}

/// The four products of two tiles of rows (tmm6, tmm7) with two tiles of columns (tmm4, tmm5).
macro_rules! products {
    () => {
        "tdpbf16ps tmm0, tmm6, tmm4\ntdpbf16ps tmm2, tmm7, tmm4\ntdpbf16ps tmm1, tmm6, tmm5\ntdpbf16ps tmm3, tmm7, tmm5"
    };
}

/// The instructions that close one: the 2 × 2 accumulators to rows 0.. and 16.. of the target.
macro_rules! store {
    () => {
        "tilestored [{c} + {ldc}*1], tmm0\ntilestored [{c} + {ldc}*1 + 64], tmm1\n\
         tilestored [{c1} + {ldc}*1], tmm2\ntilestored [{c1} + {ldc}*1 + 64], tmm3"
    };
}

/// One micro-kernel: zero, the given steps per 32 of k, store.
macro_rules! micro_kernel {
    ($a:expr, $b:expr, $steps:expr, $target:expr, $stride:expr, a_step: $a_step:literal, b_step: $b_step:literal, $($line:expr),+ $(,)?) => {
        asm!(
            zero!(),
            "2:",
            $($line,)+
            concat!("add {a}, ", $a_step),
            concat!("add {b}, ", $b_step),
            "dec {steps}",
            "jnz 2b",
            store!(),
            a = inout(reg) $a => _,
            b = inout(reg) $b => _,
            steps = inout(reg) $steps => _,
            s = in(reg) TILE_STRIDE,
            c = in(reg) $target,
            c1 = in(reg) $target.byte_add(16 * $stride),
            ldc = in(reg) $stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

impl Configured {
    /// Products of one panel of rounded values with another, both without low halves.
    ///
    /// # Safety
    /// As [`Configured::multiply`].
    pub unsafe fn multiply_rounded(&self, input: &[TileRow], weight: &[TileRow], target: *mut f32, stride: usize) {
        let steps = input.len() / PANEL;
        assert!(steps > 0 && input.len() == steps * PANEL && weight.len() == input.len());
        let (a, b) = (input.as_ptr(), weight.as_ptr());
        // SAFETY: the panels hold `steps` steps of the 2 KiB that each step's loads address, tiles are configured (self), and
        // the caller vouches for the target.
        unsafe {
            micro_kernel!(a, b, steps, target, stride, a_step: 2048, b_step: 2048,
                "tileloadd tmm4, [{b} + {s}*1]",
                "tileloadd tmm6, [{a} + {s}*1]",
                "tileloadd tmm7, [{a} + {s}*1 + 1024]",
                "tileloadd tmm5, [{b} + {s}*1 + 1024]",
                products!(),
            )
        }
    }

    /// Products of one panel of input rows with one panel of weight rows.
    ///
    /// `exact` weights are bf16 (one half per step); others carry a low half. `half` means that only the first 16
    /// rows of the input panel count: then rows 0..16 of the target get the products with the high halves of the
    /// input and rows 16..32 those with the low halves, to be added by the caller.
    ///
    /// # Safety
    /// `target` must be valid for writing 32 rows of 32 `f32`, `stride` bytes apart.
    pub unsafe fn multiply(
        &self,
        input: &[TileRow],
        weight: &[TileRow],
        exact: bool,
        half: bool,
        target: *mut f32,
        stride: usize,
    ) {
        let steps = input.len() / (2 * PANEL);
        assert!(steps > 0 && input.len() == steps * 2 * PANEL);
        assert!(weight.len() == steps * if exact { PANEL } else { 2 * PANEL });
        let (a, b) = (input.as_ptr(), weight.as_ptr());
        // SAFETY (all four): the panels hold `steps` steps (asserted above), each step is the 4 KiB or 2 KiB its loads
        // address, tiles are configured (self), and the caller vouches for the target.
        match (half, exact) {
            // input.hi·w + input.lo·w
            (false, true) => unsafe {
                micro_kernel!(a, b, steps, target, stride, a_step: 4096, b_step: 2048,
                    "tileloadd tmm4, [{b} + {s}*1]",
                    "tileloadd tmm6, [{a} + {s}*1]",
                    "tileloadd tmm7, [{a} + {s}*1 + 1024]",
                    "tileloadd tmm5, [{b} + {s}*1 + 1024]",
                    products!(),
                    "tileloadd tmm6, [{a} + {s}*1 + 2048]",
                    "tileloadd tmm7, [{a} + {s}*1 + 3072]",
                    products!(),
                )
            },
            // input.lo·w.hi + input.hi·w.hi + input.hi·w.lo
            (false, false) => unsafe {
                micro_kernel!(a, b, steps, target, stride, a_step: 4096, b_step: 4096,
                    "tileloadd tmm4, [{b} + {s}*1]",
                    "tileloadd tmm6, [{a} + {s}*1 + 2048]",
                    "tileloadd tmm7, [{a} + {s}*1 + 3072]",
                    "tileloadd tmm5, [{b} + {s}*1 + 1024]",
                    products!(),
                    "tileloadd tmm6, [{a} + {s}*1]",
                    "tileloadd tmm7, [{a} + {s}*1 + 1024]",
                    products!(),
                    "tileloadd tmm4, [{b} + {s}*1 + 2048]",
                    "tileloadd tmm5, [{b} + {s}*1 + 3072]",
                    products!(),
                )
            },
            (true, true) => unsafe {
                micro_kernel!(a, b, steps, target, stride, a_step: 4096, b_step: 2048,
                    "tileloadd tmm4, [{b} + {s}*1]",
                    "tileloadd tmm6, [{a} + {s}*1]",
                    "tileloadd tmm7, [{a} + {s}*1 + 2048]",
                    "tileloadd tmm5, [{b} + {s}*1 + 1024]",
                    products!(),
                )
            },
            (true, false) => unsafe {
                micro_kernel!(a, b, steps, target, stride, a_step: 4096, b_step: 4096,
                    "tileloadd tmm4, [{b} + {s}*1]",
                    "tileloadd tmm6, [{a} + {s}*1]",
                    "tileloadd tmm7, [{a} + {s}*1 + 2048]",
                    "tileloadd tmm5, [{b} + {s}*1 + 1024]",
                    products!(),
                    "tileloadd tmm4, [{b} + {s}*1 + 2048]",
                    "tileloadd tmm5, [{b} + {s}*1 + 3072]",
                    "tdpbf16ps tmm0, tmm6, tmm4",
                    "tdpbf16ps tmm1, tmm6, tmm5",
                )
            },
        }
    }
}
