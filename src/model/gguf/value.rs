//! Typed metadata values.

use crate::model::limits::GGUF_HEADER;

macro_rules! values {
    ($($variant:ident($ty:ty) = $id:literal, $name:literal;)+) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum GgufValue { $($variant($ty),)+ Array(GgufArray) }

        /// A list of values of one type. Lists of lists are not part of what readers accept.
        #[derive(Clone, Debug, PartialEq)]
        pub enum GgufArray { $($variant(Vec<$ty>),)+ }

        impl GgufValue {
            pub(super) fn type_id(&self) -> u32 {
                match self { $(GgufValue::$variant(_) => $id,)+ GgufValue::Array(_) => ARRAY_ID }
            }
            /// The name of the value's type, for messages.
            pub fn type_name(&self) -> &'static str {
                match self { $(GgufValue::$variant(_) => $name,)+ GgufValue::Array(_) => "list" }
            }
        }

        impl GgufArray {
            pub(super) fn type_id(&self) -> u32 {
                match self { $(GgufArray::$variant(_) => $id,)+ }
            }
            pub fn len(&self) -> usize {
                match self { $(GgufArray::$variant(items) => items.len(),)+ }
            }
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        impl Field for GgufValue {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(GgufValue::$variant(value) => value.put(out),)+
                    GgufValue::Array(array) => {
                        array.type_id().put(out);
                        (array.len() as u64).put(out);
                        match array { $(GgufArray::$variant(items) => items.iter().for_each(|item| item.put(out)),)+ }
                    }
                }
            }
        }

        /// Reads one value of the type with number `id`; the error says what is wrong.
        pub(super) fn take_value(id: u32, from: &mut Input<'_>) -> Result<GgufValue, String> {
            Ok(match id {
                $($id => GgufValue::$variant(<$ty>::take(from)?),)+
                ARRAY_ID => {
                    let id = u32::take(from)?;
                    let count = u64::take(from)?;
                    GgufValue::Array(match id {
                        $($id => GgufArray::$variant(take_items(count, from)?),)+
                        ARRAY_ID => return Err("lists of lists are not supported".to_owned()),
                        other => return Err(format!("a list of values of unknown type {other}")),
                    })
                }
                other => return Err(format!("unknown value type {other}")),
            })
        }

        $(impl From<$ty> for GgufValue {
            fn from(value: $ty) -> Self {
                GgufValue::$variant(value)
            }
        }
        impl From<Vec<$ty>> for GgufValue {
            fn from(items: Vec<$ty>) -> Self {
                GgufValue::Array(GgufArray::$variant(items))
            }
        })+
    };
}

const ARRAY_ID: u32 = 9;

values! {
    U8(u8) = 0, "u8";
    I8(i8) = 1, "i8";
    U16(u16) = 2, "u16";
    I16(i16) = 3, "i16";
    U32(u32) = 4, "u32";
    I32(i32) = 5, "i32";
    F32(f32) = 6, "f32";
    Bool(bool) = 7, "bool";
    Text(String) = 8, "text";
    U64(u64) = 10, "u64";
    I64(i64) = 11, "i64";
    F64(f64) = 12, "f64";
}

impl From<&str> for GgufValue {
    fn from(text: &str) -> Self {
        GgufValue::Text(text.to_owned())
    }
}

impl GgufValue {
    /// Any integer type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            GgufValue::U8(n) => Some(n.into()),
            GgufValue::U16(n) => Some(n.into()),
            GgufValue::U32(n) => Some(n.into()),
            GgufValue::U64(n) => Some(n),
            GgufValue::I8(n) => n.try_into().ok(),
            GgufValue::I16(n) => n.try_into().ok(),
            GgufValue::I32(n) => n.try_into().ok(),
            GgufValue::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }
    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            GgufValue::F32(x) => Some(x.into()),
            GgufValue::F64(x) => Some(x),
            GgufValue::I8(n) => Some(n.into()),
            GgufValue::I16(n) => Some(n.into()),
            GgufValue::I32(n) => Some(n.into()),
            GgufValue::I64(n) => Some(n as f64),
            ref other => other.as_u64().map(|n| n as f64),
        }
    }
    pub fn as_bool(&self) -> Option<bool> {
        if let GgufValue::Bool(flag) = *self { Some(flag) } else { None }
    }
    pub fn as_str(&self) -> Option<&str> {
        if let GgufValue::Text(text) = self { Some(text) } else { None }
    }
    pub fn as_texts(&self) -> Option<&[String]> {
        if let GgufValue::Array(GgufArray::Text(items)) = self { Some(items) } else { None }
    }
    pub fn as_i32s(&self) -> Option<&[i32]> {
        if let GgufValue::Array(GgufArray::I32(items)) = self { Some(items) } else { None }
    }
    pub fn as_f32s(&self) -> Option<&[f32]> {
        if let GgufValue::Array(GgufArray::F32(items)) = self { Some(items) } else { None }
    }
}

/// Bytes still to be read.
pub(super) struct Input<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    /// The file is longer than a header may be: `bytes` are its beginning.
    cut: bool,
}

impl<'a> Input<'a> {
    /// The header of a file: at most [`GGUF_HEADER`] bytes of it, so that no count in it asks for more memory than that
    /// could fill.
    pub fn of(file: &'a [u8]) -> Self {
        let bytes = &file[..file.len().min(GGUF_HEADER)];
        Input { bytes, at: 0, cut: bytes.len() < file.len() }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        if count > self.left() {
            if self.cut {
                return Err(format!("the header runs past its first {} MiB", GGUF_HEADER >> 20));
            }
            return Err(format!("cut off at byte {}: {count} bytes expected, {} left", self.at, self.left()));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(&self.bytes[start..self.at])
    }
}

/// How one value lies in a file, little-endian.
pub(super) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// The fewest bytes a value needs: guards against counts larger than the file.
    const LEAST: u64 = 1;
    fn take(_from: &mut Input<'_>) -> Result<Self, String> {
        Err("cannot be read without its type".to_owned())
    }
}

macro_rules! number_fields {
    ($($ty:ty),+) => {
        $(impl Field for $ty {
            const LEAST: u64 = size_of::<$ty>() as u64;
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut Input<'_>) -> Result<Self, String> {
                let bytes = from.take(Self::LEAST)?;
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                Ok(<$ty>::from_le_bytes(raw))
            }
        })+
    };
}
number_fields!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut Input<'_>) -> Result<Self, String> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("{other} is neither true nor false")),
        }
    }
}

impl Field for String {
    const LEAST: u64 = 8;
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(from: &mut Input<'_>) -> Result<Self, String> {
        let length = u64::take(from)?;
        let at = from.at;
        let bytes = from.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }
}

fn take_items<T: Field>(count: u64, from: &mut Input<'_>) -> Result<Vec<T>, String> {
    if count > from.left() / T::LEAST {
        return Err(format!("a list claims {count} items, more than the rest of the file could hold"));
    }
    (0..count).map(|_| T::take(from)).collect()
}
