//! Stages that train: `train`, `lora`, `compensation-lora`.

use super::stage_type;
use crate::recipe::choices::choices;
use crate::recipe::root::NumberOrText;

choices! {
    /// How the learning rate runs down.
    Scheduler {
        Cosine = "cosine",
        Linear = "linear",
        Constant = "constant",
        ConstantWithWarmup = "constant_with_warmup",
        Polynomial = "polynomial",
    }
}

choices! {
    /// Number format of the arithmetic.
    Precision { Bf16 = "bf16", Fp16 = "fp16", Fp32 = "fp32" }
}

stage_type! {
    /// Trains all weights.
    Train {
        required {}
        optional {
            /// Field the model is trained for.
            domain: String,
            /// Data set: hub id or path.
            dataset: String,
            /// Optimizer steps.
            #[schemars(range(min = 1))]
            steps: u32,
            /// Learning rate, written as text (`"2e-4"`).
            learning_rate: NumberOrText,
            /// Sequences per step and device.
            #[schemars(range(min = 1, max = 64))]
            batch_size: u32 = 4,
            /// Steps whose gradients are summed.
            #[schemars(range(min = 1, max = 16))]
            gradient_accumulation: u32 = 1,
            /// How the learning rate runs down.
            scheduler: Scheduler = Scheduler::Cosine,
            /// Share of the steps with a rising learning rate.
            #[schemars(range(min = 0.0, max = 1.0))]
            warmup_ratio: f64 = 0.03,
            /// Weight decay.
            #[schemars(range(min = 0.0))]
            weight_decay: f64 = 0.01,
            /// Gradients are scaled down to this norm; 0 leaves them.
            #[schemars(range(min = 0.0, max = 10.0))]
            max_gradient_norm: f64 = 1.0,
            /// Number format of the arithmetic.
            precision: Precision = Precision::Bf16,
            /// Sequence length in tokens.
            #[schemars(range(min = 128, max = 131072))]
            sequence_length: u32 = 2048,
            /// Named optimizations.
            optimizations: Vec<String> = Vec::new(),
        }
    }
}

choices! {
    /// What a student is pulled towards its teacher by.
    LossType { KlLogits = "kl_logits", MseHidden = "mse_hidden", Both = "both" }
}

fn attention_projections() -> Vec<String> {
    ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec()
}

stage_type! {
    /// Trains low-rank adapters. With a `teacher` it is compensation by distillation.
    Lora {
        required {}
        optional {
            /// Rank of the adapters.
            #[schemars(range(min = 1, max = 256))]
            rank: u32 = 32,
            /// Scale of the adapters (divided by the rank).
            #[schemars(range(min = 1, max = 512))]
            alpha: u32,
            /// Dropout before the adapters.
            #[schemars(range(min = 0.0, max = 1.0))]
            dropout: f64 = 0.05,
            /// Matrices that get an adapter.
            target_modules: Vec<String> = attention_projections(),
            /// Hold the base in few bits while training.
            quantize: bool = true,
            /// How many bits: 4 or 8.
            #[schemars(range(min = 4, max = 8))]
            quantize_bits: u32 = 4,
            /// Data set: hub id or path.
            dataset: String,
            /// Times over the data.
            #[schemars(range(min = 1, max = 20))]
            epochs: u32 = 3,
            /// Learning rate, written as text (`"1e-4"`).
            learning_rate: NumberOrText = NumberOrText::Text("1e-4".into()),
            /// Sequences per step.
            #[schemars(range(min = 1))]
            batch_size: u32 = 4,
            /// Fold the adapters into the weights afterwards.
            merge_after: bool = false,
            /// Teacher to distil from; its presence makes this a compensation stage.
            teacher: String,
            /// What the student is pulled towards the teacher by.
            loss_type: LossType,
            /// Temperature of the distillation.
            #[schemars(range(min = 0.0))]
            kd_temperature: f64,
            /// Optimizer steps.
            #[schemars(range(min = 1))]
            steps: u32,
            /// Remarks for people.
            notes: String,
        }
    }
}

impl Lora {
    /// True when this stage distils from a teacher instead of training on labels.
    pub fn is_compensation(&self) -> bool {
        self.teacher.is_some()
    }
}

choices! {
    /// Number format a teacher is held in.
    TeacherQuant { Bits8 = "8bit", Bits4 = "4bit", Fp16 = "fp16" }
}

stage_type! {
    /// Trains adapters that pull a compressed student back towards its teacher.
    CompensationLora {
        required {
            /// Hub id or path of the teacher.
            teacher: String,
            /// Name of the text to distil on.
            calibration_corpus: String,
        }
        optional {
            /// What the student is pulled towards the teacher by.
            loss_type: LossType = LossType::KlLogits,
            /// Temperature of the distillation.
            #[schemars(range(min = 0.0))]
            kd_temperature: f64 = 2.0,
            /// Rank of the adapters.
            #[schemars(range(min = 1))]
            lora_rank: u32 = 16,
            /// Scale of the adapters (divided by the rank).
            #[schemars(range(min = 1))]
            lora_alpha: u32 = 32,
            /// Matrices that get an adapter.
            target_modules: Vec<String> = Vec::new(),
            /// Optimizer steps.
            #[schemars(range(min = 1))]
            steps: u32 = 500,
            /// Learning rate, written as text (`"1e-4"`).
            learning_rate: NumberOrText = NumberOrText::Text("1e-4".into()),
            /// Number format the teacher is held in.
            teacher_quant: TeacherQuant,
            /// Number format the student is held in.
            student_quant: String,
            /// The adapters are folded into the weights when they are saved.
            merged_at_save: bool = true,
        }
    }
}
