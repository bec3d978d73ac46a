//! The weights of a block that learns: variables, known by name.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// Weights whose gradients are wanted, by name; variables from when they are loaded.
pub struct Learned {
    wanted: HashSet<String>,
    loaded: Mutex<HashMap<String, Var>>,
}

impl Learned {
    pub(super) fn new(weights: impl IntoIterator<Item = String>) -> Self {
        Learned { wanted: weights.into_iter().collect(), loaded: Mutex::default() }
    }

    pub(super) fn wants(&self, weight: &str) -> bool {
        self.wanted.contains(weight)
    }

    /// The weight as a variable.
    pub(super) fn add(&self, name: &str, weight: &Tensor) -> Result<Tensor> {
        let variable = Var::from_tensor(weight)?;
        let tensor = variable.as_tensor().clone();
        self.lock().insert(name.to_owned(), variable);
        Ok(tensor)
    }

    /// Gives a weight other values.
    pub fn set(&self, name: &str, values: Vec<f32>) -> Result<()> {
        let loaded = self.lock();
        let variable = loaded.get(name).ok_or_else(|| candle_core::Error::msg(format!("{name} does not learn")))?;
        variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)
    }

    /// The gradient of a weight, row-major; `None` where the loss does not depend on it (an expert nobody chose).
    pub fn gradient(&self, name: &str, gradients: &GradStore) -> Result<Option<Vec<f32>>> {
        let loaded = self.lock();
        let gradient = loaded.get(name).and_then(|variable| gradients.get(variable.as_tensor()));
        gradient.map(|gradient| gradient.flatten_all()?.to_vec1()).transpose()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Var>> {
        self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
