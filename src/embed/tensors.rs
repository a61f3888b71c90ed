//! A safetensors file in, plain vectors of numbers out.

use bytes::Bytes;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::folder::model_error;
use crate::error::Result;

/// The tensors of one model file, read by name.
pub(super) struct Tensors<'a> {
    location: &'a str,
    path: &'a str,
    file: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    /// Reads the header; the numbers are converted when asked for.
    pub(super) fn open(location: &'a str, path: &'a str, bytes: &'a Bytes) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| model_error(location, format!("{path} is not a readable safetensors file"), Some(e.into())))?;
        Ok(Self { location, path, file })
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// Every tensor's name, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = self.file.names();
        names.sort_unstable();
        names
    }

    /// The tensor's shape and dtype, or an error that names it.
    pub(super) fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.file.tensor(name).map_err(|e| {
            let some: Vec<&str> = self.names().into_iter().take(8).collect();
            model_error(self.location, format!("{} has no tensor `{name}` (it starts with {})", self.path, some.join(", ")), Some(e.into()))
        })
    }

    /// The tensor as f32, whatever float it is stored in, checked against `shape` where given.
    pub(super) fn floats(&self, name: &str, shape: Option<&[usize]>) -> Result<Vec<f32>> {
        let view = self.view(name)?;
        if let Some(shape) = shape
            && view.shape() != shape
        {
            return Err(self.wrong(name, format!("has shape {:?} where the configuration asks for {shape:?}", view.shape())));
        }
        let data = view.data();
        Ok(match view.dtype() {
            Dtype::F32 => read(data, |b: [u8; 4]| f32::from_le_bytes(b)),
            Dtype::F16 => read(data, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => read(data, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => read(data, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
            other => return Err(self.wrong(name, format!("is {other:?}; supported are F32, F16, BF16 and F64"))),
        })
    }

    /// The tensor as f32 rows of `columns` numbers, however many.
    pub(super) fn table(&self, name: &str, columns: usize) -> Result<Vec<f32>> {
        let shape = self.view(name)?.shape().to_vec();
        match shape.as_slice() {
            [_, width] if *width == columns => self.floats(name, None),
            _ => Err(self.wrong(name, format!("has shape {shape:?}; expected rows of {columns}"))),
        }
    }

    /// The tensor as int8.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<i8>> {
        let view = self.view(name)?;
        match view.dtype() {
            Dtype::I8 => Ok(read(view.data(), |b: [u8; 1]| i8::from_le_bytes(b))),
            other => Err(self.wrong(name, format!("is {other:?}; expected I8"))),
        }
    }

    /// The tensor as row numbers.
    pub(super) fn indices(&self, name: &str) -> Result<Vec<i64>> {
        let view = self.view(name)?;
        match view.dtype() {
            Dtype::I64 => Ok(read(view.data(), i64::from_le_bytes)),
            Dtype::I32 => Ok(read(view.data(), |b: [u8; 4]| i64::from(i32::from_le_bytes(b)))),
            other => Err(self.wrong(name, format!("is {other:?}; supported are I64 and I32"))),
        }
    }

    /// An error about one tensor.
    pub(super) fn wrong(&self, name: &str, reason: String) -> crate::error::Error {
        model_error(self.location, format!("tensor `{name}` of {} {reason}", self.path), None)
    }
}

/// Little-endian elements of `N` bytes each. The file's own header has been checked against its length.
fn read<const N: usize, T>(data: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|bytes| element(*bytes)).collect()
}
