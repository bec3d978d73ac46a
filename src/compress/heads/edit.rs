//! What happens to one tensor when heads go: along one axis, the part that belongs to each removed head is zeroed or
//! taken out.

use crate::compress::CompressError;
use crate::model::{Dtype, TensorMeta};

/// The axis of a matrix `[rows, cols]` along which heads lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// q, k, v (and their biases): rows are outputs.
    Rows,
    /// The output projection: columns are inputs.
    Columns,
}

/// The change of one tensor: along `axis`, head `n` is the `width` elements from `n · width` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadEdit {
    pub axis: Axis,
    pub width: usize,
    /// Heads along the axis.
    pub count: usize,
    /// Heads that go, ascending.
    pub gone: Vec<usize>,
    /// Take them out instead of writing zeros.
    pub slice: bool,
}

impl HeadEdit {
    /// The tensor's shape afterwards.
    ///
    /// # Errors
    /// The tensor does not have the shape the edit is for, or a type whose elements cannot be cut apart.
    pub fn shape(&self, meta: &TensorMeta) -> Result<Vec<usize>, CompressError> {
        let wrong = |reason: String| CompressError::Tensor { tensor: meta.name.clone(), reason };
        if !matches!(meta.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(wrong(format!("heads cannot be cut out of type {}", meta.dtype)));
        }
        let along = match self.axis {
            Axis::Rows => meta.rows(),
            Axis::Columns => meta.row_elems(),
        };
        let known = matches!((self.axis, meta.shape.len()), (Axis::Rows, 1 | 2) | (Axis::Columns, 2));
        if !known || along != self.width * self.count {
            let (count, width) = (self.count, self.width);
            return Err(wrong(format!("shape {:?} does not hold {count} heads of {width}", meta.shape)));
        }
        let mut shape = meta.shape.clone();
        if self.slice {
            let left = (self.count - self.gone.len()) * self.width;
            match self.axis {
                Axis::Rows => shape[0] = left,
                Axis::Columns => shape[1] = left,
            }
        }
        Ok(shape)
    }

    /// The tensor's bytes afterwards. Zeros are +0.0, whose bytes are zero in every type [`HeadEdit::shape`] admits.
    pub fn apply(&self, meta: &TensorMeta, bytes: &[u8]) -> Vec<u8> {
        let element = bytes.len() / meta.elems().max(1);
        // A matrix cut by columns is a list of rows, each cut alike; one cut by rows is a single such list.
        let (line, head) = match self.axis {
            Axis::Rows => (bytes.len(), self.width * meta.row_elems() * element),
            Axis::Columns => (meta.row_elems() * element, self.width * element),
        };
        let mut out = Vec::with_capacity(bytes.len());
        for line in bytes.chunks_exact(line.max(1)) {
            for (n, part) in line.chunks_exact(head.max(1)).enumerate() {
                match (self.gone.binary_search(&n).is_ok(), self.slice) {
                    (false, _) => out.extend_from_slice(part),
                    (true, false) => out.resize(out.len() + part.len(), 0),
                    (true, true) => {}
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(shape: &[usize]) -> TensorMeta {
        let elems: usize = shape.iter().product();
        TensorMeta { name: "t".into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: 4 * elems as u64, file: 0 }
    }

    fn applied(edit: &HeadEdit, shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
        let meta = meta(shape);
        let bytes: Vec<u8> = (0..meta.elems()).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect();
        let out = edit.apply(&meta, &bytes);
        let values = out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (edit.shape(&meta).unwrap(), values)
    }

    #[test]
    fn heads_are_cut_along_their_axis() {
        let mut edit = HeadEdit { axis: Axis::Rows, width: 1, count: 3, gone: vec![1], slice: false };
        assert_eq!(applied(&edit, &[3, 2]), (vec![3, 2], vec![1.0, 2.0, 0.0, 0.0, 5.0, 6.0]));
        assert_eq!(applied(&edit, &[3]), (vec![3], vec![1.0, 0.0, 3.0]));
        edit.slice = true;
        assert_eq!(applied(&edit, &[3, 2]), (vec![2, 2], vec![1.0, 2.0, 5.0, 6.0]));
        let mut edit = HeadEdit { axis: Axis::Columns, width: 2, count: 2, gone: vec![0], slice: false };
        assert_eq!(applied(&edit, &[2, 4]), (vec![2, 4], vec![0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0]));
        edit.slice = true;
        assert_eq!(applied(&edit, &[2, 4]), (vec![2, 2], vec![3.0, 4.0, 7.0, 8.0]));
    }

    #[test]
    fn another_shape_or_type_is_refused() {
        let edit = HeadEdit { axis: Axis::Rows, width: 2, count: 3, gone: vec![0], slice: false };
        insta::assert_snapshot!(edit.shape(&meta(&[5, 4])).unwrap_err(), @"tensor t: shape [5, 4] does not hold 3 heads of 2");
        let packed = TensorMeta { dtype: Dtype::U8, ..meta(&[6, 4]) };
        insta::assert_snapshot!(edit.shape(&packed).unwrap_err(), @"tensor t: heads cannot be cut out of type U8");
    }
}
