//! The registry macro: one line declares a module and lists its item.
//!
//! ```text
//! registry! { pub FAMILIES: dyn Family {
//!     llama => Llama,
//!     qwen3 => Qwen3,
//! } }
//! ```
//! expands to `mod llama; mod qwen3;` and a static slice `FAMILIES` of the unit structs `llama::Llama`, `qwen3::Qwen3`.
//! Everything else (validation, listings, reference pages, completeness tests) is derived from that slice.

/// Declares the modules of a room's items and the slice that lists them, in the order written.
#[macro_export]
macro_rules! registry {
    ($(#[$attr:meta])* $vis:vis $list:ident : $item:ty { $($module:ident => $unit:ident),+ $(,)? }) => {
        $(mod $module;)+
        $(#[$attr])*
        $vis static $list: &[&$item] = &[$(&$module::$unit),+];
    };
}
